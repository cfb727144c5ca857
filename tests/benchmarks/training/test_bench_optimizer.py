"""Steps of optimizers side by side, in small."""

from collections.abc import Callable

import torch

from benchmarks.report.record import Record
from benchmarks.shape import SMALL
from benchmarks.training import bench_optimizer
from benchmarks.training.bench_optimizer import OURS, Side, make_sides, model_of


def test_every_side_moves_as_many_factors() -> None:
    sides = make_sides(model_of({**SMALL, "num_hidden_layers": 1}))
    assert OURS.keys() < sides.keys()
    assert len({side.num_elements for side in sides.values()}) == 1


def test_a_step_is_timed_on_a_gradient_of_its_own() -> None:
    seen: list[tuple[int, float]] = []
    gradient = torch.zeros(64)
    side = Side(gradient, lambda number: seen.append((number, float(gradient.norm()))))
    assert side.timed_step() > 0
    gradient.zero_()
    side.timed_step()
    assert [number for number, _ in seen] == [1, 2]
    assert all(norm > 0 for _, norm in seen)


def test_a_record_has_every_side(smoke_run: Callable[..., Record]) -> None:
    figures = smoke_run(bench_optimizer.main, "--smoke", "--repeats", "2").figures
    assert all(len(seconds) == 2 for seconds in figures["seconds"].values())
    assert all(median > 0 for median in figures["median_ms"].values())
