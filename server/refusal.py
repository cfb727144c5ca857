"""Why a good request is not answered now: too many others, or too little time."""

from multiflora.engine.errors import EngineError, EngineOverloaded, EngineUnavailable


class Refused(EngineOverloaded):
    """There is no room for the request now; there may be in ``retry_after_seconds``."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Refused):
    """Too much is waiting already."""

    code = "queue_full"


class RateLimited(Refused):
    """The key or the adapter has used up what it may ask for."""

    code = "rate_limited"


class Saturated(EngineUnavailable):
    """Requests are still taken, but others have more room for them."""

    code = "saturated"


class DeadlineExceeded(EngineError):
    """The client's patience ended before the answer did."""

    code = "deadline_exceeded"
