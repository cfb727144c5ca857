"""Adapters into one: every module by the recipe's method, with a report of what happened to it.

Modules are read, merged and rounded one at a time, so that only the result is held in memory.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..error import AdapterRejected
from .delta import Delta, combine, zero_delta
from .depth import values_of_t
from .element_wise import merge_entries
from .gram import Gram
from .knots import align
from .method import COMPAT
from .model_stock import model_stock
from .module_pool import one_by_one, side_by_side
from .parent import Parent, widest
from .peft_rule import Factors, merge_as_peft
from .rank_policy import RankPolicy
from .recipe import Recipe
from .recompress import Recompressed, recompress, truncate
from .report import MergeReport, ModuleReport, PairReport, ParentReport
from .spherical import Combination, karcher, multi_slerp, sequential_slerp, slerp
from .write import DTYPES, StoredDelta, round_delta, write_adapter

Progress = Callable[[float], None]
# Keys of PEFT's config with which a name in target_modules does not mean all that end in it.
_NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")
# A result below this share of what went in has cancelled to rounding noise.
_CANCELLED = 1e-6


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge that is not written yet."""

    modules: Mapping[str, StoredDelta]
    report: MergeReport
    base_name: str | None
    task_type: str | None
    targets: tuple[str, ...] | None

    def write(self, out: Path) -> None:
        """Write a PEFT folder with the report beside it. Raises as ``write_adapter``."""
        write_adapter(
            out,
            self.modules,
            base_name=self.base_name,
            task_type=self.task_type,
            targets=self.targets,
            report=self.report.to_json(),
        )


def merge_folders(
    paths: Sequence[Path],
    recipe: Recipe,
    *,
    names: Sequence[str] | None = None,
    on_progress: Progress | None = None,
) -> Merged:
    """``merge`` the PEFT folders at ``paths``, called ``names`` in the report and in errors."""
    with ExitStack() as opened:
        parents = [
            opened.enter_context(Parent(path, name=name))
            for path, name in zip(paths, names or [path.name for path in paths], strict=True)
        ]
        return merge(parents, recipe, on_progress=on_progress)


def merge(
    parents: Sequence[Parent], recipe: Recipe, *, on_progress: Progress | None = None
) -> Merged:
    """Merge ``parents`` in the order of the recipe's weights; a module that one lacks is zero.

    ``on_progress`` is told the share that is done. Raises ``AdapterRejected`` for parents that do
    not fit together or cannot be merged, and ``ValueError`` for a recipe that does not fit them.
    """
    assert len(parents) == recipe.num_parents
    shapes = _check_parents(parents, recipe)
    dtype = DTYPES[recipe.dtype] if recipe.dtype else widest(parent.dtype for parent in parents)
    bound = _BoundRecipe(parents, recipe, shapes)
    stored: dict[str, StoredDelta] = {}
    reports: list[ModuleReport] = []
    # Dense matrices are held one at a time.
    run = side_by_side if recipe.rule.family == "scalar" else one_by_one
    with run(partial(bound.finish_module, dtype=dtype), shapes) as finished:
        for path, (delta, report) in zip(shapes, finished, strict=True):
            stored[path] = delta
            reports.append(report)
            if on_progress:
                on_progress(len(reports) / len(shapes))
    _refuse_nothing(recipe, reports)
    return Merged(
        stored,
        _report(parents, recipe, bound.rank, str(dtype).removeprefix("torch."), reports),
        next((parent.base_name for parent in parents if parent.base_name), None),
        parents[0].config.get("task_type"),
        _targets(parents),
    )


class _Outcome(NamedTuple):
    delta: Delta
    energy_kept: float
    combination: Combination | None
    deltas: list[Delta]
    gram: Gram


class _BoundRecipe:
    """The recipe bound to its parents."""

    def __init__(
        self, parents: Sequence[Parent], recipe: Recipe, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        self._parents = parents
        self._recipe = recipe
        self._shapes = shapes
        self._settings = {name: recipe.setting(name) for name in recipe.rule.options}
        self.rank = recipe.rank or _default_rank(parents, recipe)
        self._t = {}
        if recipe.uses_t:
            self._t = values_of_t(list(shapes), recipe.setting("t"), recipe.setting("filters"))

    def finish_module(self, path: str, *, dtype: torch.dtype) -> tuple[StoredDelta, ModuleReport]:
        """The module as it is stored, and what there is to say of it."""
        try:
            outcome = self.merge_module(path)
            stored = round_delta(outcome.delta, dtype)
        except AdapterRejected as error:
            raise AdapterRejected(error.code, f"{path}: {error}") from None
        return stored, _module_report(path, outcome, stored.rounding_error)

    def merge_module(self, path: str) -> _Outcome:
        deltas = [
            parent.delta(path) if path in parent.modules else zero_delta(self._shapes[path])
            for parent in self._parents
        ]
        gram = Gram(deltas)
        family = self._recipe.rule.family
        if family == "scalar":
            combination = self._combination(path, gram)
            result = recompress(combine(deltas, combination.coefficients), self.rank)
            return _Outcome(*result, combination, deltas, gram)
        merge_one = {"dense": self._dense, "knots": self._knots, "peft": self._peft}[family]
        return _Outcome(*merge_one(path, deltas), None, deltas, gram)

    def _combination(self, path: str, gram: Gram) -> Combination:
        recipe, weights = self._recipe, self._recipe.shares
        lerp = recipe.setting("on_antiparallel") == "lerp"
        match recipe.method:
            case "slerp" if path in self._t:
                return slerp(gram.inner, self._t[path], lerp_antiparallel=lerp)
            case "slerp" if recipe.setting("sequential"):
                return sequential_slerp(gram.inner, weights, lerp_antiparallel=lerp)
            case "slerp":
                return multi_slerp(gram.inner, weights, lerp_antiparallel=lerp)
            case "karcher":
                return karcher(gram.inner, weights)
            case "model_stock":
                return model_stock(gram.inner)
        return Combination(list(weights), "linear")

    def _dense(self, path: str, deltas: Sequence[Delta]) -> Recompressed:
        rule = self._recipe.rule
        merged = merge_entries(
            [delta.dense() for delta in deltas],
            self._recipe.shares,
            drop=rule.drop,
            join=rule.join,
            settings=self._settings,
            path=path,
        )
        rank = self.rank
        if self._recipe.rank is None:
            # What an exact method would have taken for the module.
            rank = RankPolicy(rank=max(1, sum(delta.rank for delta in deltas)))
        return truncate(merged, rank)

    def _knots(self, path: str, deltas: Sequence[Delta]) -> Recompressed:
        rule = self._recipe.rule
        aligned = align(deltas)
        merged = merge_entries(
            aligned.blocks,
            self._recipe.shares,
            drop=rule.drop,
            join=rule.join,
            settings=self._settings,
            path=path,
        )
        return recompress(Delta(aligned.basis, merged), self.rank)

    def _peft(self, path: str, deltas: Sequence[Delta]) -> Recompressed:
        factors = [
            Factors(*parent.factors(path), parent.modules[path].scale, weight)
            for parent, weight in zip(self._parents, self._recipe.shares, strict=True)
            if path in parent.modules
        ]
        return merge_as_peft(
            factors,
            self._recipe.method.removeprefix(COMPAT),
            density=self._recipe.setting("density"),
            rank=self.rank,
        )


def _refuse_nothing(recipe: Recipe, reports: Sequence[ModuleReport]) -> None:
    given = sum(
        abs(weight) * norm
        for report in reports
        for weight, norm in zip(recipe.shares, report.norms, strict=True)
    )
    if sum(report.norm for report in reports) <= _CANCELLED * given:
        raise AdapterRejected(
            "empty_merge",
            f"the {recipe.method} of these parents is zero: they cancel, or are zero themselves; "
            "change the weights or the method",
        )


def _default_rank(parents: Sequence[Parent], recipe: Recipe) -> RankPolicy:
    if recipe.method.endswith("svd"):
        return RankPolicy(rank=max(m.rank for p in parents for m in p.modules.values()))
    return RankPolicy()


def _check_parents(parents: Sequence[Parent], recipe: Recipe) -> dict[str, tuple[int, int]]:
    """The shape of every module that any parent adapts, sorted by path."""
    _check_bases(parents, recipe)
    shapes: dict[str, tuple[int, int]] = {}
    owner: dict[str, str] = {}
    for parent in parents:
        if recipe.rule.family == "peft" and parent.config.get("use_rslora"):
            raise AdapterRejected(
                "unsupported_feature",
                f"{parent.name} uses rsLoRA, which PEFT 0.21.2 merges too strongly; use "
                f"{recipe.method.removeprefix(COMPAT)} without {COMPAT.rstrip(':')}",
            )
        for path, module in parent.modules.items():
            known = shapes.setdefault(path, module.shape)
            if known != module.shape:
                raise AdapterRejected(
                    "different_shapes",
                    f"{path} is {list(known)} in {owner[path]} and {list(module.shape)} in "
                    f"{parent.name}; only adapters of one base can be merged",
                )
            owner.setdefault(path, parent.name)
    return dict(sorted(shapes.items()))


def _check_bases(parents: Sequence[Parent], recipe: Recipe) -> None:
    named = [parent for parent in parents if parent.base_name]
    for parent in named[1:]:
        if parent.base_name != named[0].base_name and not recipe.allow_different_bases:
            raise AdapterRejected(
                "different_base",
                f"{named[0].name} was trained on {named[0].base_name!r} and {parent.name} on "
                f"{parent.base_name!r}; if both names mean one model, allow different bases",
            )


def _targets(parents: Sequence[Parent]) -> tuple[str, ...] | None:
    """Short names, if they mean for all parents together what they meant for each."""
    names: set[str] = set()
    for parent in parents:
        targets = parent.config.get("target_modules")
        if not isinstance(targets, list) or any(parent.config.get(key) for key in _NARROWING):
            return None
        ends = tuple(f".{name}" for name in targets)
        if not all(f".{path}".endswith(ends) for path in parent.modules):
            return None
        names.update(targets)
    return tuple(sorted(names))


def _module_report(path: str, outcome: _Outcome, rounding_error: float) -> ModuleReport:
    gram, deltas = outcome.gram, outcome.deltas
    size = len(deltas)
    return ModuleReport(
        path=path,
        ranks=tuple(delta.rank for delta in deltas),
        norms=tuple(gram.norms),
        pairs=tuple(_pair(gram, i, j) for i in range(size) for j in range(i + 1, size)),
        coefficients=tuple(outcome.combination.coefficients) if outcome.combination else None,
        branch=outcome.combination.branch if outcome.combination else "element-wise",
        rank=outcome.delta.rank,
        norm=_norm(outcome),
        energy_kept=outcome.energy_kept,
        rounding_error=rounding_error,
    )


def _norm(outcome: _Outcome) -> float:
    if outcome.combination is None:
        return Gram([outcome.delta]).norms[0]
    # Truncation leaves the share of energy that it kept.
    full = outcome.gram.norm_of(outcome.combination.coefficients)
    return full * math.sqrt(outcome.energy_kept)


def _pair(gram: Gram, one: int, other: int) -> PairReport:
    cosine = gram.cosine(one, other)
    return PairReport(
        parents=(one, other),
        cosine=cosine,
        angle=math.degrees(math.acos(cosine)),
        overlap=gram.overlap(one, other),
        input_overlap=gram.input_overlap(one, other),
    )


def _report(
    parents: Sequence[Parent],
    recipe: Recipe,
    rank: RankPolicy,
    dtype: str,
    modules: Sequence[ModuleReport],
) -> MergeReport:
    is_dense = recipe.rule.family == "dense" and recipe.rank is None
    is_weighed = recipe.rule.has_weights and not recipe.uses_t
    return MergeReport(
        method=recipe.method,
        variant=recipe.rule.about,
        parents=tuple(
            ParentReport(
                name=parent.name,
                base=parent.base_name,
                dtype=str(parent.dtype).removeprefix("torch."),
                weight=weight if is_weighed else None,
            )
            for parent, weight in zip(parents, recipe.shares, strict=True)
        ),
        settings=recipe.settings(),
        rank="sum of ranks" if is_dense else str(rank),
        dtype=dtype,
        modules=tuple(modules),
    )
