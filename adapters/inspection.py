"""The complete check of one adapter, from the file a stranger sent to its digest.

It runs in whatever process calls it; ``gate`` runs it in one that may die.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .archive import ArchiveLimits, unpack
from .error import AdapterRejected
from .feature import features_of
from .folder import (
    CHUNK_BYTES,
    CONFIG_NAME,
    TEMPLATE_NAME,
    WEIGHTS_NAME,
    AdapterFolder,
    open_regular,
)
from .ia3_format import check_inputs
from .module_spec import ModuleSpec
from .resolution import parse_config, resolve_modules
from .target import Projection


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLimits:
    """What one adapter, and its check, may cost. Raises ``ValueError`` for a limit below 1.

    ``max_bytes`` is for the weights file. ``memory_bytes`` is address space, 25 MiB of which the
    check's own process takes; ``cpu_seconds`` and ``wall_seconds`` end that process.
    ``match_milliseconds`` of CPU go to patterns of the config, which are matched again whenever the
    version is loaded.
    """

    max_rank: int = 256
    max_bytes: int = 4 << 30
    max_tensors: int = 20_000
    match_milliseconds: int = 2000
    memory_bytes: int = 512 << 20
    cpu_seconds: int = 60
    wall_seconds: int = 120
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{limit.name} is {value}; it must be at least 1")
        if self.memory_bytes < _MIN_MEMORY_BYTES:
            raise ValueError(
                f"memory_bytes is {self.memory_bytes}; the check itself needs {_MIN_MEMORY_BYTES}"
            )


_MIN_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedAdapter:
    """What the check found: ``num_bytes`` of weights file, the largest ``rank``, and the modules.

    ``modules`` are the distinct last parts of the adapted modules' paths, in order; ``features``
    what the adapter has beside LoRA on the decoder's linears.
    """

    digest: str
    num_bytes: int
    rank: int
    num_modules: int
    modules: tuple[str, ...]
    features: tuple[str, ...] = ()


def inspect_source(
    source: Path,
    staged: Path,
    *,
    projections: Sequence[Projection],
    limits: GateLimits,
    with_template: bool = False,
) -> CheckedAdapter:
    """Bring the adapter at ``source``, a PEFT folder or a packed one, into ``staged`` and check it.

    Its chat template comes along only ``with_template``; its size and encoding are all that is
    checked of it, and the digest then covers it. Only the copy is checked, so a source that changes
    meanwhile changes nothing. Raises ``AdapterRejected`` with the reason.
    """
    if source.is_dir():
        copy_folder(source, staged, max_bytes=limits.max_bytes, with_template=with_template)
    else:
        unpack(source, staged, limits=limits.archive, with_template=with_template)
    folder = AdapterFolder(staged)
    _check_size(folder, limits)
    modules = _resolve(folder, projections, limits)
    folder.check_finite()
    return CheckedAdapter(
        digest=folder.digest(_semantics(modules, folder.template)),
        num_bytes=folder.weights_bytes,
        rank=max(module.rank for module in modules),
        num_modules=len(modules),
        modules=tuple(sorted({module.path.rpartition(".")[2] for module in modules})),
        features=features_of(modules),
    )


def inspect_adapter(
    folder: AdapterFolder, projections: Sequence[Projection]
) -> tuple[ModuleSpec, ...]:
    """Resolve every tensor of ``folder`` to a module of the base."""
    targets = [target for projection in projections for target in projection.slices]
    modules = resolve_modules(parse_config(folder.config), folder.shapes, targets)
    check_inputs(projections, modules)
    return modules


def copy_folder(source: Path, into: Path, *, max_bytes: int, with_template: bool = False) -> None:
    """Copy the files of the PEFT folder ``source``; a longer weights file is refused."""
    folder = AdapterFolder(source)
    (into / CONFIG_NAME).write_bytes(folder.config_bytes)
    if with_template and folder.template is not None:
        (into / TEMPLATE_NAME).write_text(folder.template, encoding="utf-8", newline="")
    copied = 0
    with open_regular(source / WEIGHTS_NAME) as weights, open(into / WEIGHTS_NAME, "xb") as copy:
        while chunk := weights.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > max_bytes:
                raise _too_large(f"at least {copied} bytes", max_bytes, "max_bytes")
            copy.write(chunk)


def _check_size(folder: AdapterFolder, limits: GateLimits) -> None:
    if folder.weights_bytes > limits.max_bytes:
        raise _too_large(f"{folder.weights_bytes} bytes", limits.max_bytes, "max_bytes")
    if len(folder.entries) > limits.max_tensors:
        raise _too_large(f"{len(folder.entries)} tensors", limits.max_tensors, "max_tensors")


def _resolve(
    folder: AdapterFolder, projections: Sequence[Projection], limits: GateLimits
) -> tuple[ModuleSpec, ...]:
    started = time.process_time()
    modules = inspect_adapter(folder, projections)
    spent = time.process_time() - started
    if spent * 1000 > limits.match_milliseconds:
        raise AdapterRejected(
            "slow_pattern",
            f"matching the patterns of {CONFIG_NAME} took {spent:.1f} s of CPU, over "
            f"{limits.match_milliseconds / 1000} s; list plain module names",
        )
    largest = max(modules, key=lambda module: module.rank)
    if largest.rank > limits.max_rank:
        raise AdapterRejected(
            "rank_too_large",
            f"{largest.a_name} has rank {largest.rank}, over {limits.max_rank}; train with a "
            "smaller rank, or raise max_rank",
        )
    return modules


def _semantics(modules: Sequence[ModuleSpec], template: str | None) -> str:
    """What the config means, canonically: two spellings of one adapter share a digest.

    What a module has not is left out, so that a digest outlives features that it does not use.
    """
    present = [
        {name: value for name, value in asdict(module).items() if value is not None}
        for module in modules
    ]
    meaning = json.dumps(present, sort_keys=True)
    return meaning if template is None else f"{meaning}\n{json.dumps(template)}"


def _too_large(found: str, limit: int, name: str) -> AdapterRejected:
    return AdapterRejected(
        "adapter_too_large",
        f"{WEIGHTS_NAME} has {found}, over {limit}; use a smaller adapter, or raise {name}",
    )
