"""Every error a user can cause, as one tree.

    EngineError
    |- RequestRejected              the request can never run as it is
    |  |- PromptTooLong
    |  `- InvalidToken
    |- EngineUnavailable            try again later
    |  |- EngineLoading
    |  `- EngineOverloaded
    |- RequestFailed                the engine gave up on an admitted request
    |- ExportRefused                the written model would not be what was asked for
    `- StartupError                 the server cannot start
       |- BaseNotFound
       |- UnsupportedModel
       |- InvalidCheckpoint
       `- NotEnoughMemory

``adapters.error.AdapterRejected`` stands beside it. The server maps the tree to HTTP in one place.
"""


class EngineError(Exception):
    """Base of the tree; ``code`` is the stable word that clients see."""

    code = "engine_error"


class RequestRejected(EngineError):
    """A request that no retry can save; ``param`` names the offending field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestRejected):
    """Prompt plus answer do not fit the context window."""

    code = "context_length_exceeded"


class InvalidToken(RequestRejected):
    """A token id outside the vocabulary."""

    code = "invalid_token"


class EngineUnavailable(EngineError):
    """The engine is starting, restarting or stopped."""

    code = "engine_unavailable"


class EngineLoading(EngineUnavailable):
    """The engine reads its base, for the first time or after it died."""

    code = "loading"


class EngineOverloaded(EngineUnavailable):
    """The queue is full."""

    code = "queue_full"


class RequestFailed(EngineError):
    """An admitted request that ended with an error."""

    code = "engine_error"

    def __init__(self, message: str, *, code: str = "engine_error") -> None:
        super().__init__(message)
        self.code = code


class ExportRefused(EngineError):
    """What would be written is not what was asked for; the message says what is lost."""

    code = "export_refused"


class StartupError(EngineError):
    """The server cannot start; the message says what to change."""

    code = "startup_error"


class BaseNotFound(StartupError):
    """Neither a folder nor a hub id that can be had."""

    code = "base_not_found"


class UnsupportedModel(StartupError):
    """An architecture or a feature of a model that is not implemented."""

    code = "unsupported_model"


class InvalidCheckpoint(StartupError):
    """A model folder with missing, surplus, truncated or misshapen parts."""

    code = "invalid_checkpoint"


class NotEnoughMemory(StartupError):
    """The memory plan does not fit the device."""

    code = "not_enough_memory"
