"""Extremes, the best few and draws of rows of logits, against their definitions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.ops import Ops

# Below one register, around blocks of the core's, and beyond the room that it keeps for the best.
SIZES = [1, 7, 8, 9, 511, 512, 513, 4_099]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda logits: 5 * logits,
    "ties": lambda logits: logits.round(),
    "flat": torch.zeros_like,
    "rising": lambda logits: logits.sort(dim=1).values,
    "falling": lambda logits: logits.sort(dim=1, descending=True).values,
    "signed zeros": lambda logits: torch.where(logits > 0, 0.0, -0.0),
    "huge": lambda logits: 1e38 * logits.clamp(-3, 3),
    "half banned": lambda logits: logits.masked_fill(logits < 0, -torch.inf),
}
shapes = pytest.mark.parametrize("shape", SHAPES)
sizes = pytest.mark.parametrize("size", SIZES)


@shapes
@sizes
def test_the_peak_is_the_first_of_the_largest(ops: Ops, size: int, shape: str) -> None:
    logits = SHAPES[shape](noise(3, size))
    best, is_finite = ops.peaks(logits)
    for row, index, found in zip(logits, best, is_finite, strict=True):
        assert found == row.isfinite().all()
        assert index == (row == row.max()).nonzero()[0, 0]


@sizes
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_seen_anywhere_in_its_row_and_in_no_other(
    ops: Ops, size: int, poison: float
) -> None:
    for place in {0, size // 2, size - 1}:
        logits = noise(3, size)
        logits[1, place] = poison
        best, is_finite = ops.peaks(logits)
        assert is_finite.tolist() == [True, False, True]
        assert all(0 <= index < size for index in best)


@shapes
@pytest.mark.parametrize("count", [1, 65, 600, 4_099])
def test_the_best_are_the_head_of_a_full_sort(ops: Ops, count: int, shape: str) -> None:
    logits = SHAPES[shape](noise(3, 4_099))
    values, ids = ops.top_k(logits, count)
    assert torch.equal(values, logits.sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row.tolist())) == count for row in ids)


@shapes
def test_of_equal_logits_the_core_takes_the_lower_ids_in_order(shape: str) -> None:
    if cpu_ops.describe().startswith("torch"):
        pytest.skip("the core is not built here")
    logits = SHAPES[shape](noise(3, 4_099))
    order = logits.sort(dim=1, descending=True, stable=True).indices
    for count in (1, 65, 600):
        assert torch.equal(cpu_ops.top_k(logits, count)[1], order[:, :count])


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "huge"])
@pytest.mark.parametrize("temperature", [1e-260, 0.3, 1.0, 50.0])
def test_weights_are_summed_over_the_whole_row(ops: Ops, shape: str, temperature: float) -> None:
    logits = SHAPES[shape](noise(3, 1_000))
    distances = (logits - logits.amax(1, keepdim=True)).double()
    expected = (distances / temperature).exp().sum(1)
    found = ops.weight_sums(logits, torch.full((3,), temperature, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@shapes
@sizes
def test_a_draw_is_where_the_running_weight_passes_its_point(
    ops: Ops, size: int, shape: str
) -> None:
    logits = SHAPES[shape](noise(9, size))
    logits[:, -1] = 4.0
    temperatures = torch.linspace(0.2, 3, 9, dtype=torch.float64)
    points = torch.linspace(0, 1 - 2**-53, 9, dtype=torch.float64)
    drawn = ops.draw(logits, temperatures, points)
    distances = (logits - logits.amax(1, keepdim=True)).double()
    running = (distances / temperatures[:, None]).exp().cumsum(1)
    shares = torch.cat((running.new_zeros(9, 1), running / running[:, -1:]), 1)
    for row, (token, point) in enumerate(zip(drawn.tolist(), points.tolist(), strict=True)):
        assert shares[row, token] - 1e-6 <= point <= shares[row, token + 1] + 1e-6
        assert logits[row, token] > -torch.inf


@pytest.mark.parametrize("point", [0.0, 1 - 2**-53])
def test_what_is_ruled_out_is_never_drawn(ops: Ops, point: float) -> None:
    logits = torch.full((1, 3_000), -torch.inf)
    logits[0, 700], logits[0, 1_900] = 1.0, 1.0
    drawn = ops.draw(logits, torch.ones(1).double(), torch.tensor([point], dtype=torch.float64))
    assert drawn.tolist() == [700 if point < 0.5 else 1_900]


def test_the_lowest_temperature_draws_the_best(ops: Ops) -> None:
    logits = noise(5, 3_000)
    lowest = torch.full((5,), 1e-260, dtype=torch.float64)
    for point in (0.0, 0.5, 1 - 2**-53):
        drawn = ops.draw(logits, lowest, torch.full((5,), point, dtype=torch.float64))
        assert torch.equal(drawn, logits.argmax(1))


def test_a_row_without_anything_stays_within_itself(ops: Ops) -> None:
    logits = torch.stack((torch.full((700,), -torch.inf), torch.full((700,), torch.nan)))
    ones = torch.ones(2).double()
    for found in (ops.draw(logits, ones, ones / 2), ops.top_k(logits, 3)[1], ops.peaks(logits)[0]):
        assert bool(((found >= 0) & (found < 700)).all())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_drawn_alike_alone_and_among_others(threads: int) -> None:
    logits, points = 3 * noise(40, 9_000), torch.rand(40, dtype=torch.float64)
    temperatures = torch.ones(40).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = cpu_ops.draw(logits, temperatures, points), cpu_ops.top_k(logits, 70)[1]
        for row in range(0, 40, 7):
            own = slice(row, row + 1)
            alone = cpu_ops.draw(logits[own], temperatures[own], points[own])
            assert torch.equal(alone, together[0][own])
            assert torch.equal(cpu_ops.top_k(logits[own], 70)[1], together[1][own])
    finally:
        torch.set_num_threads(before)


def test_every_other_row_of_wider_memory_is_read_right() -> None:
    wide = noise(6, 2_000)
    part = wide[::2, :1_000]
    for found, expected in zip(cpu_ops.peaks(part), torch_ops.peaks(part.clone()), strict=True):
        assert torch.equal(found, expected)
