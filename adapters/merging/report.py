"""What a merge did, module by module, as plain data. Knows no tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """How two parents lie to each other in one module: indices into the report's parents.

    ``cosine`` and ``angle`` (degrees) are of the flattened deltas; ``overlap`` of the spaces they
    write to, ``input_overlap`` of those they read, 0 (apart) to 1 (one within the other).
    """

    parents: tuple[int, int]
    cosine: float
    angle: float
    overlap: float
    input_overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """``ranks`` and ``norms`` are the parents', 0 where one lacks the module.

    ``coefficients`` are what each parent was multiplied with, None where no such number exists;
    ``branch`` is the case of the formula. ``energy_kept`` is the share of the squared norm of the
    full result; ``rounding_error`` the relative error that the stored dtype adds.
    """

    path: str
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    pairs: tuple[PairReport, ...]
    coefficients: tuple[float, ...] | None
    branch: str
    rank: int
    norm: float
    energy_kept: float
    rounding_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentReport:
    """``weight`` is None where the method takes none, or took ``t`` instead."""

    name: str
    base: str | None
    dtype: str
    weight: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """``variant`` says which form of the method ran; ``settings`` is all that it read."""

    method: str
    variant: str
    parents: tuple[ParentReport, ...]
    settings: Mapping[str, Any]
    rank: str
    dtype: str
    modules: tuple[ModuleReport, ...]

    @property
    def num_missing(self) -> int:
        """Modules that some parent lacks."""
        return sum(0 in module.ranks for module in self.modules)

    def summary(self) -> dict[str, Any]:
        """The whole merge in a few numbers; means of pairs are over those with both modules."""
        modules = self.modules
        pairs = [
            pair
            for module in modules
            for pair in module.pairs
            if all(module.ranks[index] for index in pair.parents)
        ]
        return {
            "num_modules": len(modules),
            "num_missing": self.num_missing,
            "rank_min": min(module.rank for module in modules),
            "rank_max": max(module.rank for module in modules),
            "energy_kept_min": min(module.energy_kept for module in modules),
            "energy_kept_mean": _weighted([m.energy_kept for m in modules], modules),
            "rounding_error_max": max(module.rounding_error for module in modules),
            "cosine_mean": fmean(pair.cosine for pair in pairs) if pairs else None,
            "overlap_mean": fmean(pair.overlap for pair in pairs) if pairs else None,
            "branches": sorted({module.branch for module in modules}),
        }

    def provenance(self) -> dict[str, Any]:
        """What a version keeps of it for good: all but the single pairs."""
        kept = ("path", "coefficients", "branch", "rank", "norm", "energy_kept", "rounding_error")
        whole = self.to_json()
        whole["modules"] = [{name: row[name] for name in kept} for row in whole["modules"]]
        return whole

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "summary": self.summary()}


def _weighted(values: Sequence[float], modules: Sequence[ModuleReport]) -> float:
    """The mean by squared norm: a module that does much counts much."""
    weights = [module.norm**2 for module in modules]
    if not sum(weights):
        return fmean(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
