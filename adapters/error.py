"""Why an adapter was turned away."""


class AdapterRejected(ValueError):
    """The adapter cannot be served exactly as it was trained.

    ``code`` is a stable machine-readable word; the message names the cause and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
