"""The way in: an adapter is checked against the base, then kept under its digest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .gate import check_adapter
from .inspection import GateLimits
from .store import AdapterStore
from .target import Projection
from .version import Version


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
    return import_version(path, projections=projections, store=store, limits=limits).digest


def import_version(
    path: Path,
    *,
    projections: Sequence[Projection],
    store: AdapterStore,
    limits: GateLimits | None = None,
    source: str = "",
    parents: tuple[str, ...] = (),
    metrics: Mapping[str, Any] | None = None,
    base: str = "",
    with_template: bool = False,
) -> Version:
    """As ``import_adapter``; returns the record for ``Registry.publish_version``.

    The adapter's own chat template is kept only ``with_template``.

    The store holds the bytes until they are published or ``store.release`` gives them up.
    """
    with store.staging() as staged:
        checked = check_adapter(
            path, staged, projections=projections, limits=limits, with_template=with_template
        )
        store.put(checked.digest, staged)
    return Version(
        checked.digest,
        source=source,
        parents=parents,
        metrics=metrics or {},
        num_bytes=checked.num_bytes,
        rank=checked.rank,
        features=checked.features,
        base=base,
    )
