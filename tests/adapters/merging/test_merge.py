"""Merges of whole folders, read back from what was written, against dense float64 algebra."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.delta import Delta, concatenate
from multiflora.adapters.merging.depth import Curve, Filter
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.method import METHODS
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import Recipe
from multiflora.adapters.merging.report import MergeReport
from multiflora.adapters.merging.write import REPORT_NAME, round_delta, write_adapter

Measure = Callable[[Tensor, Tensor], float]
MakeParent = Callable[..., Path]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
DOWN = "model.layers.1.mlp.down_proj"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 3},
    "rslora": {"use_rslora": True, "lora_alpha": 16},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5}},
}
SCALAR_OF_TWO = ("linear", "cat", "svd", "slerp", "karcher", "model_stock")
ELEMENT_WISE = [name for name, rule in METHODS.items() if rule.family in ("dense", "knots")]
DRAWN = ("ties", "ties_knots", "dare_linear", "dare_ties_knots", "della", "breadcrumbs_knots")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], MergeReport]]:
    """Merge, write, read back: dense float64 results by module path, and the report."""
    numbers: Iterator[int] = iter(range(100))

    def merge(
        folders: Sequence[Path], method: str = "linear", **settings: Any
    ) -> tuple[dict[str, Tensor], MergeReport]:
        out = tmp_path / f"out-{next(numbers)}"
        recipe = Recipe(num_parents=len(folders), method=method, **settings)
        merged = merge_folders(folders, recipe)
        merged.write(out)
        assert json.loads((out / REPORT_NAME).read_text())["method"] == method
        return dense(out), merged.report

    return merge


def dense(folder: Path) -> dict[str, Tensor]:
    with Parent(folder) as parent:
        return {
            path: parent.delta(path).b.double() @ parent.delta(path).a.double()
            for path in parent.modules
        }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ends_of_a_merge_are_its_parents(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure, variant: str
) -> None:
    one, other = make_parent("one", **VARIANTS[variant]), make_parent("other", seed=1, rank=3)
    for folders, settings, expected in (
        ([one, other], {"method": "slerp", "t": Curve((0.0,))}, one),
        ([one, other], {"method": "slerp", "t": Curve((1.0,))}, other),
        ([one], {"method": "linear", "weights": (1.0,)}, one),
        ([one, other], {"method": "linear", "weights": (0.0, 1.0)}, other),
        ([one], {"method": "slerp"}, one),
        ([one], {"method": "model_stock"}, one),
    ):
        found, _ = run(folders, **settings)
        for path, matrix in dense(expected).items():
            assert error(found[path], matrix) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", SCALAR_OF_TWO)
def test_an_adapter_merged_with_itself_is_itself(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure, method: str, variant: str
) -> None:
    one = make_parent("one", **VARIANTS[variant])
    found, _ = run([one, one], method)
    for path, matrix in dense(one).items():
        assert error(found[path], matrix) < 1e-6


def regauged(kind: str) -> Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def edit(path: str, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        rank = a.shape[0]
        generator = torch.Generator().manual_seed(len(path))
        mix = {
            "permuted": torch.eye(rank)[torch.randperm(rank, generator=generator)],
            "flipped": torch.diag(torch.tensor([(-1.0) ** i for i in range(rank)])),
            "mixed": torch.randn(rank, rank, generator=generator) + 3 * torch.eye(rank),
        }[kind]
        return b @ torch.linalg.inv(mix), mix @ a

    return edit


@pytest.mark.parametrize("kind", ["permuted", "flipped", "mixed"])
@pytest.mark.parametrize(
    "method", [*SCALAR_OF_TWO, "ties", "ties_knots", "magnitude_prune_knots", "dare_ties"]
)
def test_other_factors_of_the_same_product_change_nothing(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure, method: str, kind: str
) -> None:
    one, other = make_parent("one"), make_parent("other", seed=1)
    same = make_parent("same", edit=regauged(kind))
    expected, _ = run([one, other], method)
    found, _ = run([same, other], method)
    for path, matrix in expected.items():
        # Model stock of near strangers is tiny: the cosine's own error shows.
        assert error(found[path], matrix) < (1e-4 if method == "model_stock" else 1e-5)


def slerp_by_definition(one: Tensor, other: Tensor, t: float) -> Tensor:
    if not one.any() or not other.any():
        return (1 - t) * one + t * other
    angle = math.acos(float((one * other).sum() / one.norm() / other.norm()))
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


def test_mixed_parents_merge_as_their_matrices_do(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure
) -> None:
    one = make_parent("one", rank=4, lora_alpha=3, targets=("q_proj", "v_proj"))
    other = make_parent(
        "other", 1, rank=2, use_rslora=True, targets=("v_proj", "down_proj"), rank_pattern={}
    )
    left, right = dense(one), dense(other)
    linear, report = run([one, other], weights=(0.7, -0.3))
    arc, _ = run([one, other], "slerp", t=Curve((0.25,)))
    assert list(linear) == sorted({*left, *right})
    for path, found in linear.items():
        shape = found.shape
        zero = torch.zeros(shape, dtype=torch.float64)
        one_matrix, other_matrix = left.get(path, zero), right.get(path, zero)
        assert error(found, 0.7 * one_matrix - 0.3 * other_matrix) < 1e-6
        assert error(arc[path], slerp_by_definition(one_matrix, other_matrix, 0.25)) < 1e-6
    ranks = {module.path: module.ranks for module in report.modules}
    assert (ranks[Q], ranks[V], ranks[DOWN]) == ((4, 0), (4, 2), (0, 2))
    assert report.num_missing == 4


def test_the_report_tells_angles_norms_ranks_and_energy(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure
) -> None:
    one, other = make_parent("one"), make_parent("other", seed=1, rank=3)
    found, report = run([one, other], "slerp", rank=RankPolicy(rank=2))
    full, _ = run([one, other], "slerp")
    left, right = dense(one), dense(other)
    for module in report.modules:
        one_matrix, other_matrix = left[module.path], right[module.path]
        norms = float(one_matrix.norm()), float(other_matrix.norm())
        assert module.norms == pytest.approx(norms)
        cosine = float((one_matrix * other_matrix).sum()) / norms[0] / norms[1]
        assert module.pairs[0].cosine == pytest.approx(cosine)
        assert math.cos(math.radians(module.pairs[0].angle)) == pytest.approx(cosine)
        assert (module.rank, module.branch) == (2, "slerp")
        assert module.norm == pytest.approx(float(found[module.path].norm()))
        kept = (found[module.path].norm() / full[module.path].norm()) ** 2
        assert module.energy_kept == pytest.approx(float(kept), rel=1e-4)
    summary = report.summary()
    assert summary["rank_max"] == 2
    assert 0 < summary["energy_kept_min"] <= summary["energy_kept_mean"] < 1


def test_t_follows_depth_and_filters(make_parent: MakeParent, run: Callable[..., Any]) -> None:
    parents = [make_parent("one"), make_parent("other", seed=1)]
    _, report = run(
        parents,
        "slerp",
        t=Curve((0.0, 1.0)),
        filters=(Filter("mlp", Curve((1.0,))),),
    )
    found = {module.path: module.coefficients for module in report.modules}
    assert found[Q] == (1, 0)
    assert found[V] == (0, 1)
    assert found["model.layers.0.mlp.down_proj"] == (0, 1)


@pytest.mark.parametrize("method", ELEMENT_WISE)
def test_an_element_wise_merge_that_drops_nothing_is_exact(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure, method: str
) -> None:
    one = make_parent("one")
    settings = {"gamma": 0.0} if "breadcrumbs" in method else {}
    found, report = run([one, one], method, density=1.0, weights=(0.5, 0.5), **settings)
    # Election divides by the number of those that agree, a sum does not.
    factor = 0.5 if METHODS[method].join == "elect" else 1.0
    for path, matrix in dense(one).items():
        assert error(found[path], factor * matrix) < 2e-6
    assert report.summary()["energy_kept_min"] == pytest.approx(1)


@pytest.mark.parametrize("method", DRAWN)
def test_an_element_wise_merge_is_the_same_to_the_bit_again(
    make_parent: MakeParent, run: Callable[..., Any], method: str
) -> None:
    parents = [make_parent("one"), make_parent("other", seed=1)]
    first, report = run(parents, method)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        second, _ = run(parents, method)
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(first[path], second[path]) for path in first)
    assert all(module.energy_kept < 1 or "knots" in method for module in report.modules)
    if "seed" in METHODS[method].options:
        other, _ = run(parents, method, seed=7)
        assert not torch.equal(first[Q], other[Q])


def test_a_module_merges_the_same_whatever_else_is_merged(
    make_parent: MakeParent, run: Callable[..., Any]
) -> None:
    parents = [make_parent("one"), make_parent("other", seed=1)]
    # v_proj alone: the same factors as in the full adapters.
    alone = []
    for parent in parents:
        matrix = dense(parent)[V]
        alone.append(
            make_parent(
                f"{parent.name}-alone",
                targets=("v_proj",),
                rank=12,
                lora_alpha=12,
                edit=lambda path, b, a, matrix=matrix: (torch.eye(12), matrix.float()),
            )
        )
    whole, _ = run(parents, "dare_linear", rank=RankPolicy())
    part, _ = run(alone, "dare_linear", rank=RankPolicy())
    torch.testing.assert_close(part[V], whole[V], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_dtype_is_the_widest_parents_unless_it_is_given(
    make_parent: MakeParent, run: Callable[..., Any], error: Measure, dtype: str
) -> None:
    parents = [make_parent("one", dtype=torch.bfloat16), make_parent("o", 1, dtype=torch.float32)]
    _, report = run(parents)
    assert report.dtype == "float32"
    exact, _ = run(parents)
    found, report = run(parents, dtype=dtype)
    bar = {"float32": 0.0, "float16": 5e-4, "bfloat16": 4e-3}[dtype]
    for module in report.modules:
        assert module.rounding_error <= bar
        actual = error(found[module.path], exact[module.path])
        assert actual == pytest.approx(module.rounding_error, rel=0.05, abs=1e-7)
    _, report = run([parents[0], parents[0]])
    assert report.dtype == "bfloat16"


@pytest.mark.parametrize("rank", ["exact", "3"])
@pytest.mark.parametrize(
    "method", ["linear", "svd", "slerp", "karcher", "model_stock", "ties_knots"]
)
def test_no_dense_matrix_is_made(
    random_delta: Callable[..., Delta], tmp_path: Path, method: str, rank: str
) -> None:
    """One of 300,000 x 300,000 would take 360 GB."""
    one, other = (random_delta(300_000, 300_000, 2, seed) for seed in range(2))
    for name, delta in (("one", one), ("related", concatenate([one, other]))):
        write_adapter(tmp_path / name, {Q: round_delta(delta, torch.float32)}, base_name=None)
    recipe = Recipe(num_parents=2, method=method, rank=RankPolicy.parse(rank))
    (module,) = merge_folders([tmp_path / "one", tmp_path / "related"], recipe).report.modules
    assert module.norm > 0
    assert module.rank <= (3 if rank == "3" else 6)


def refused(folders: Sequence[Path], code: str, match: str, **settings: Any) -> None:
    with pytest.raises(AdapterRejected, match=match) as caught:
        merge_folders(folders, Recipe(num_parents=len(folders), **settings))
    assert caught.value.code == code


def test_parents_of_another_base_are_refused(make_parent: MakeParent) -> None:
    one = make_parent("one")
    other = make_parent("other", 1, base_model_name_or_path="elsewhere/base")
    refused([one, other], "different_base", "elsewhere/base.*allow different bases")
    merge_folders([one, other], Recipe(num_parents=2, allow_different_bases=True))
    unknown = make_parent("unknown", 1, base_model_name_or_path=None)
    assert merge_folders([unknown, one], Recipe(num_parents=2)).base_name == "some/base"


def test_parents_of_other_shapes_are_refused_whatever_is_allowed(make_parent: MakeParent) -> None:
    wide = make_parent("wide", 1, edit=lambda path, b, a: (b, torch.cat([a, a], dim=1)))
    refused([make_parent("one"), wide], "different_shapes", "wide", allow_different_bases=True)


def test_a_parent_with_nan_is_refused_by_name(make_parent: MakeParent) -> None:
    bad = make_parent("bad", edit=lambda path, b, a: (b * float("nan"), a))
    refused([make_parent("one"), bad], "not_finite", "bad: .*NaN")


def test_a_merge_of_opposites_is_refused_by_module(make_parent: MakeParent) -> None:
    parents = [make_parent("one"), make_parent("other", lora_alpha=-8)]
    refused(parents, "antiparallel", r"down_proj: .*opposite", method="slerp")
    refused(parents, "empty_merge", "zero")


def test_a_merge_of_nothing_is_refused(make_parent: MakeParent) -> None:
    zero = make_parent("zero", edit=lambda path, b, a: (b * 0, a))
    refused([zero, zero], "empty_merge", "zero")
    merge_folders([zero, make_parent("one")], Recipe(num_parents=2, method="slerp"))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "model_stock"])
def test_a_module_that_is_zero_in_all_parents_stays_zero(
    make_parent: MakeParent, run: Callable[..., Any], method: str
) -> None:
    def silence(path: str, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return (b * 0, a) if path == Q else (b, a)

    parents = [make_parent("one", edit=silence), make_parent("other", 1, edit=silence)]
    found, report = run(parents, method)
    assert not found[Q].any()
    assert found[V].any()
    assert next(m.energy_kept for m in report.modules if m.path == Q) == 1


def test_progress_ends_at_one(make_parent: MakeParent) -> None:
    told: list[float] = []
    merge_folders([make_parent("one")], Recipe(num_parents=1), on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1


def test_targets_stay_short_where_they_mean_the_same(
    make_parent: MakeParent, tmp_path: Path
) -> None:
    one = make_parent("one", targets=("q_proj", "v_proj"))
    other = make_parent("other", 1, targets=("v_proj", "down_proj"))
    assert merge_folders([one, other], Recipe(num_parents=2)).targets == (
        "down_proj",
        "q_proj",
        "v_proj",
    )
    narrow = make_parent("narrow", 1, layers_to_transform=[0, 1])
    merged = merge_folders([one, narrow], Recipe(num_parents=2))
    assert merged.targets is None
    merged.write(tmp_path / "out")
    assert Q in json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
