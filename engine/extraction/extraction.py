"""A LoRA out of a fine-tuned checkpoint: what its linears have more than those of its base."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.write import (
    StoredDelta,
    refuse_existing,
    round_delta,
    write_adapter,
)

from ..errors import ExportRefused
from ..models.named_folder import NamedFolder
from ..models.plain_base import PlainBase
from .dense_delta import decompose

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionSettings:
    """What to extract.

    ``base_weights`` says what is subtracted: the checkpoint's own weights, or NF4 as served,
    decoded (for a model that was exported on that). ``ignore_others`` leaves out what no LoRA on
    linears can hold, instead of refusing.
    """

    rank: RankPolicy = field(default_factory=lambda: RankPolicy(energy=0.9))
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    base_weights: Literal["quantized", "original"] = "original"
    ignore_others: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedModule:
    """``norm`` is |D|, ``relative`` |D| / |W|, ``energy_kept`` the share of |D|^2 in the LoRA.

    ``rounding_error`` is what the stored dtype adds, relative to the kept part.
    """

    rank: int
    norm: float
    relative: float | None
    energy_kept: float
    rounding_error: float


def extract_lora(
    model: NamedFolder,
    base: NamedFolder,
    out: Path,
    settings: ExtractionSettings,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Write the PEFT folder ``out`` and return its report, which lies beside the weights.

    Linears that do not differ get no LoRA. Raises ``ExportRefused`` for models that no LoRA can
    relate, ``StartupError`` for their files, ``AdapterRejected`` for ``out``, and ``OSError``.
    """
    refuse_existing(out)
    tuned = PlainBase(model.folder, quantized=False)
    plain = PlainBase(base.folder, quantized=settings.base_weights == "quantized")
    _check_shapes(model, tuned, base, plain)
    others = _others(tuned, plain, progress)
    if others and not settings.ignore_others:
        raise ExportRefused(
            f"{model.name} differs from {base.name} in {_listed(others)}, which a LoRA on linears "
            "cannot hold; leave them as in the base with --ignore-others"
        )
    stored: dict[str, StoredDelta] = {}
    modules: dict[str, ExtractedModule] = {}
    for target in plain.targets:
        progress("comparing linears", tuned.progress)
        weight = plain.linear(target)
        difference = tuned.linear(target).sub_(weight)
        if not difference.isfinite().all():
            raise ExportRefused(f"tensor {target.path}.weight differs by NaN or infinity")
        if difference.count_nonzero():
            found = decompose(difference, settings.rank)
            stored[target.path] = round_delta(found.delta, getattr(torch, settings.dtype))
            modules[target.path] = _module(
                difference, weight, stored[target.path], found.energy_kept
            )
    for read in (tuned, plain):
        read.check_all_read()
    if not modules:
        raise ExportRefused(f"no linear of {model.name} differs from {base.name}")
    report = _report(model, base, settings, others, modules)
    write_adapter(out, stored, base_name=base.name, report=report)
    return report


def _check_shapes(
    model: NamedFolder, tuned: PlainBase, base: NamedFolder, plain: PlainBase
) -> None:
    if tuned.targets != plain.targets:
        found, wanted = set(tuned.targets), set(plain.targets)
        first = min(found ^ wanted, key=lambda target: target.path)
        raise ExportRefused(
            f"{model.name} is no fine-tune of {base.name}: {first.path} of "
            f"[{first.out_features}, {first.in_features}] is in one of them only"
        )


def _others(tuned: PlainBase, plain: PlainBase, progress: Progress) -> tuple[str, ...]:
    """Tensors besides linears' weights that differ, or that only one of the models has."""
    ours, theirs = set(tuned.dense_names()), set(plain.dense_names())
    differing = ours ^ theirs
    for name in sorted(ours | theirs):
        progress("comparing other tensors", tuned.progress)
        tensors = [side.dense(name) for side in (tuned, plain) if name in side.dense_names()]
        if not all(torch.equal(tensor.float(), tensors[0].float()) for tensor in tensors):
            differing.add(name)
    return tuple(sorted(differing))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 4} more tensors" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _module(
    difference: torch.Tensor, weight: torch.Tensor, stored: StoredDelta, energy_kept: float
) -> ExtractedModule:
    norm, base_norm = float(difference.norm()), float(weight.norm())
    return ExtractedModule(
        rank=stored.rank,
        norm=norm,
        relative=norm / base_norm if base_norm else None,
        energy_kept=energy_kept,
        rounding_error=stored.rounding_error,
    )


def _report(
    model: NamedFolder,
    base: NamedFolder,
    settings: ExtractionSettings,
    others: tuple[str, ...],
    modules: Mapping[str, ExtractedModule],
) -> dict[str, Any]:
    energy = sum(module.norm**2 for module in modules.values())
    kept = sum(module.energy_kept * module.norm**2 for module in modules.values())
    return {
        "extracted_from": model.name,
        "base": {"name": base.name, "weights": settings.base_weights},
        "rank": str(settings.rank),
        "dtype": settings.dtype,
        "not_held": list(others),
        "summary": {
            "modules": len(modules),
            "rank_min": min(module.rank for module in modules.values()),
            "rank_max": max(module.rank for module in modules.values()),
            "energy_kept": kept / energy,
        },
        "modules": {path: asdict(module) for path, module in modules.items()},
    }
