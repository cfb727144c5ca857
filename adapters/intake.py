"""The way in: check an adapter folder against the base, then keep it under its digest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .folder import AdapterFolder
from .peft_format import ModuleSpec, parse_settings, resolve_modules
from .store import AdapterStore
from .target import Projection
from .version import Version


def import_adapter(path: Path, *, projections: Sequence[Projection], store: AdapterStore) -> str:
    """Check the PEFT folder at ``path`` completely and store it; returns its digest.

    Raises ``AdapterRejected`` with the reason; nothing is stored then.
    """
    return import_version(path, projections=projections, store=store).digest


def import_version(
    path: Path,
    *,
    projections: Sequence[Projection],
    store: AdapterStore,
    source: str = "",
    parents: tuple[str, ...] = (),
    metrics: Mapping[str, Any] | None = None,
    base: str = "",
) -> Version:
    """As ``import_adapter``; returns the record for ``Registry.publish_version``.

    The store holds the bytes until they are published or ``store.release`` gives them up.
    """
    folder = AdapterFolder(path)
    modules = inspect_adapter(folder, projections)
    folder.check_finite()
    version = Version(
        folder.digest(_semantics(modules)),
        source=source,
        parents=parents,
        metrics=metrics or {},
        num_bytes=sum(entry.stop - entry.start for entry in folder.entries),
        rank=max(module.rank for module in modules),
        base=base,
    )
    store.put(version.digest, folder)
    return version


def inspect_adapter(
    folder: AdapterFolder, projections: Sequence[Projection]
) -> tuple[ModuleSpec, ...]:
    """Resolve every tensor of ``folder`` to a module of the base."""
    settings = parse_settings(folder.config)
    targets = [target for projection in projections for target in projection.slices]
    return resolve_modules(settings, folder.shapes, targets)


def _semantics(modules: Sequence[ModuleSpec]) -> str:
    """What the config means, canonically: two spellings of one adapter share a digest."""
    return json.dumps([asdict(module) for module in modules], sort_keys=True)
