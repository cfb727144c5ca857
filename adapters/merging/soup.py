"""The mean of checkpoints of one training run, taken on their deltas and never on their factors.

Weight averaging after arXiv 2203.05482; for LoRA the mean of B @ A is not the product of means.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..error import AdapterRejected
from .delta import combine
from .parent import Parent, ParentModule, widest
from .rank_policy import RankPolicy
from .recompress import recompress
from .write import StoredDelta, refuse_existing, round_delta, write_adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class SoupModule:
    """``energy_kept`` is a share of the exact mean's squared norm; ``rounding_error`` relative."""

    rank: int
    energy_kept: float
    rounding_error: float


def cook(
    paths: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    rank: RankPolicy | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write the mean of the PEFT folders ``paths`` to ``out`` and return its report.

    ``weights`` count by their ratios, all alike by default; ``rank`` None keeps the checkpoints'
    own ranks. Raises ``AdapterRejected`` for checkpoints that are not of one run, ``ValueError``
    for weights, and ``OSError``.
    """
    shares = _shares(weights, len(paths))
    refuse_existing(out)
    with ExitStack() as opened:
        parents = [
            opened.enter_context(Parent(path, name=name))
            for path, name in zip(paths, names or [path.name for path in paths], strict=True)
        ]
        _check_one_run(parents)
        stored: dict[str, StoredDelta] = {}
        modules: dict[str, SoupModule] = {}
        dtype = widest(parent.dtype for parent in parents)
        for path, module in parents[0].modules.items():
            mean = combine([parent.delta(path) for parent in parents], shares)
            found = recompress(mean, rank or RankPolicy(rank=module.rank))
            stored[path] = round_delta(found.delta, dtype)
            modules[path] = SoupModule(
                rank=stored[path].rank,
                energy_kept=found.energy_kept,
                rounding_error=stored[path].rounding_error,
            )
    report = {
        "checkpoints": [
            {"name": parent.name, "weight": share}
            for parent, share in zip(parents, shares, strict=True)
        ],
        "base": parents[0].base_name,
        "rank": str(rank) if rank else "the checkpoints'",
        "dtype": str(dtype).removeprefix("torch."),
        "summary": {
            "modules": len(modules),
            "energy_kept_min": min(module.energy_kept for module in modules.values()),
        },
        "modules": {path: asdict(module) for path, module in modules.items()},
    }
    write_adapter(
        out,
        stored,
        base_name=parents[0].base_name,
        task_type=parents[0].config.get("task_type"),
        report=report,
    )
    return report


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if count < 2:
        raise ValueError("a soup needs at least 2 checkpoints")
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights are given for {count} checkpoints")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise ValueError(f"weights are {list(weights)}; a mean needs positive numbers")
    return [weight / sum(weights) for weight in weights]


def _check_one_run(parents: Sequence[Parent]) -> None:
    first = parents[0]
    for parent in parents[1:]:
        if parent.base_name != first.base_name:
            raise AdapterRejected(
                "different_base",
                f"{first.name} was trained on {first.base_name!r} and {parent.name} on "
                f"{parent.base_name!r}; a soup is made of checkpoints of one run",
            )
        for path in sorted({*first.modules, *parent.modules}):
            one, other = first.modules.get(path), parent.modules.get(path)
            if one is None or other is None or (one.shape, one.rank) != (other.shape, other.rank):
                raise AdapterRejected(
                    "different_shapes",
                    f"{path} is {_about(one)} in {first.name} and {_about(other)} in "
                    f"{parent.name}; use merge for adapters of different runs",
                )


def _about(module: ParentModule | None) -> str:
    return "absent" if module is None else f"{list(module.shape)} of rank {module.rank}"
