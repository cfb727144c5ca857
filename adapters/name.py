"""What an adapter may be called: text that is safe in URLs, metric labels and log lines."""

import re
from collections.abc import Collection
from typing import Final

from .error import InvalidName

MAX_NAME_CHARS: Final = 128
# `merge` is the path under /v1/adapters that makes a version out of others.
RESERVED_NAMES: Final = frozenset({"merge"})
_NAME: Final = re.compile(f"[A-Za-z0-9][A-Za-z0-9._:-]{{0,{MAX_NAME_CHARS - 1}}}")


def check_name(name: str, reserved: Collection[str] = ()) -> None:
    """Raise ``InvalidName`` unless ``name`` is sane, free of ``/``, and not reserved."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name[:200]!r} cannot be an adapter's name; use 1 to {MAX_NAME_CHARS} letters, "
            "digits, '.', '_', '-' and ':', beginning with a letter or digit"
        )
    if name in RESERVED_NAMES or name in reserved:
        raise InvalidName(
            f"{name!r} cannot be an adapter's name: it is reserved; choose another, such as "
            f"{name + '-1'!r}"
        )
