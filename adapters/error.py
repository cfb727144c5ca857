"""Why an adapter was turned away."""

_HEAD_CHARS, _TAIL_CHARS = 400, 200


class AdapterRejected(ValueError):
    """The adapter cannot be served exactly as it was trained.

    ``code`` is a stable machine-readable word; the message names the cause and the remedy. It may
    quote names and values of the file: it is cut to about 600 characters (start and end stay) and
    what is not printable is escaped, so that a file cannot flood or forge a log.
    """

    def __init__(self, code: str, message: str) -> None:
        if len(message) > _HEAD_CHARS + _TAIL_CHARS:
            message = f"{message[:_HEAD_CHARS]} ... {message[-_TAIL_CHARS:]}"
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in message))
        self.code = code


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
