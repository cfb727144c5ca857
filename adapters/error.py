"""What can be wrong with an adapter, its name or its registry. The server maps these to HTTP."""

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


class RegistryError(Exception):
    """The registry did not do what it was asked for; ``code`` is a stable word."""

    code = "registry_error"

    def __str__(self) -> str:
        # KeyError, a parent of some of these, would show the message in quotes.
        return str(self.args[0]) if self.args else ""


class InvalidName(RegistryError, ValueError):
    """The text cannot be the name of an adapter."""

    code = "invalid_name"


class InvalidCanary(RegistryError, ValueError):
    """The weight is out of range, or the version is the active one."""

    code = "invalid_canary"


class UnknownName(RegistryError, KeyError):
    """No adapter has this name."""

    code = "unknown_adapter"

    def __init__(self, name: str) -> None:
        super().__init__(f"no adapter is named {name[:100]!r}; publish one under that name first")


class UnknownVersion(RegistryError, LookupError):
    """The version was never published, was collected, or is not kept by the name."""

    code = "unknown_version"


class PreconditionFailed(RegistryError):
    """The name does not point at the version that the caller expected."""

    code = "precondition_failed"


class ForeignName(RegistryError):
    """The name belongs to another tenant."""

    code = "adapter_conflict"

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name[:100]!r} is taken; choose another")


class VersionInUse(RegistryError):
    """A name or a canary points at the version."""

    code = "version_in_use"


class RegistryUnavailable(RegistryError):
    """The database is held by another process, damaged, too new, or cannot be written."""

    code = "registry_unavailable"
