"""The way in: check an adapter folder against the base, then keep it under its digest."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .folder import AdapterFolder
from .peft_format import ModuleSpec, parse_settings, resolve_modules
from .store import AdapterStore
from .target import Projection


def import_adapter(path: Path, *, projections: Sequence[Projection], store: AdapterStore) -> str:
    """Check the PEFT folder at ``path`` completely and store it; returns its digest.

    Raises ``AdapterRejected`` with the reason; nothing is stored then.
    """
    folder = AdapterFolder(path)
    modules = inspect_adapter(folder, projections)
    folder.check_finite()
    digest = folder.digest(_semantics(modules))
    store.put(digest, folder)
    return digest


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
