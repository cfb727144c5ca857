"""The way in: an adapter is checked against the base, then kept under its digest."""

from collections.abc import Sequence
from pathlib import Path

from .gate import check_adapter
from .inspection import GateLimits
from .store import AdapterStore
from .target import Projection


def import_adapter(
    path: Path,
    *,
    projections: Sequence[Projection],
    store: AdapterStore,
    limits: GateLimits | None = None,
) -> str:
    """Check the PEFT folder or archive at ``path`` completely and store it; returns its digest.

    Blocks for as long as ``limits`` allow. Raises ``AdapterRejected`` with the reason, and
    ``OSError`` if the disk fails; nothing is stored then.
    """
    with store.staging() as staged:
        checked = check_adapter(path, staged, projections=projections, limits=limits)
        store.put(checked.digest, staged)
    return checked.digest
