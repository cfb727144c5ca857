"""A name of the registry and the events in its life, as plain records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .canary import Canary


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """A name and the version that it points at.

    ``kept`` are the digests that it can go to at once, the one used last first; it always holds
    ``digest`` and the canary's. ``created`` and ``updated`` (when the pointer moved last) are Unix
    times in seconds. ``tenant`` is whose it is; empty is shared.
    """

    name: str
    digest: str
    created: int
    updated: int
    is_pinned: bool = False
    canary: Canary | None = None
    kept: tuple[str, ...] = ()
    tenant: str = ""

    def is_seen_by(self, view: str | None) -> bool:
        """Whether a tenant may know of it; ``view`` None is nobody in particular, who sees all."""
        return view is None or self.tenant in ("", view)

    @property
    def in_use(self) -> frozenset[str]:
        """Digests that new requests can get."""
        return frozenset({self.digest} | ({self.canary.digest} if self.canary else set()))


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """Something that happened to a name; ``time`` is a Unix time in seconds.

    ``action`` is ``point``, ``keep``, ``rollback``, ``retire``, ``delete``, ``pin``, ``unpin``,
    ``set_canary``, ``clear_canary`` or ``promote``; ``weight`` is that of a canary. ``evidence`` is
    what a change that nobody asked for rests on.
    """

    id: int
    name: str
    action: str
    time: int
    from_digest: str | None = None
    to_digest: str | None = None
    weight: float | None = None
    evidence: Mapping[str, Any] | None = None
