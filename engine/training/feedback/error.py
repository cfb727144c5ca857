"""What can be asked of feedback in vain. The server maps these to HTTP."""

from multiflora.adapters.error import RegistryError


class CompletionNotFound(RegistryError, KeyError):
    """No answer is kept under this id: its adapter did not opt in, or it was erased, or is old."""

    code = "completion_not_found"

    def __init__(self, completion_id: str, choice: int = 0) -> None:
        place = f", choice {choice}" if choice else ""
        super().__init__(
            f"no answer is kept with the id {completion_id[:100]!r}{place}; only adapters that "
            "learn, or that keep answers for feedback, have theirs kept, and only for a time"
        )


class FeedbackNotFound(RegistryError, KeyError):
    """No feedback has this id, or it was erased."""

    code = "feedback_not_found"

    def __init__(self, feedback_id: str) -> None:
        super().__init__(f"no feedback has the id {feedback_id[:100]!r}")
