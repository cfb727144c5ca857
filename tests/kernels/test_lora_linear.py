"""The projection op equals its definition in float64, for any segments, on every backend."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multiflora.kernels import cpu_ops, nf4
from multiflora.kernels.ops import (
    DenseWeight,
    LoraFactors,
    LoraInput,
    LoraPart,
    Ops,
    Segment,
)
from multiflora.kernels.quantize import quantize

MakeLora = Callable[..., LoraInput]

K, WIDTHS = 128, (96, 32, 64)
N = sum(WIDTHS)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_factors(ranks: tuple[int, ...], seed: int, dtype: torch.dtype) -> LoraFactors:
    """A of all slices stacked; a rank of 0 leaves a slice untouched."""
    parts, first_rank, first_column = [], 0, 0
    for index, (rank, width) in enumerate(zip(ranks, WIDTHS, strict=True)):
        if rank:
            b = random(rank, width, seed=seed + 10 + index, scale=0.3).to(dtype)
            parts.append(LoraPart(b, first_rank, first_column, 0.5 + index))
        first_rank += rank
        first_column += width
    return LoraFactors(random(first_rank, K, seed=seed, scale=0.3).to(dtype), tuple(parts))


TABLE_RANKS = [(8, 8, 8), (1, 0, 3), (0, 40, 0), (256, 16, 5)]
SEGMENTS = [
    Segment(0, 3, 0),
    Segment(3, 20, 1),
    Segment(3, 20, 2, -0.5),
    Segment(20, 21, 3),
    Segment(40, 57, 0, 2.0),
]


def expected(
    x: Tensor,
    dense: Tensor,
    bias: Tensor | None,
    table: Sequence[LoraFactors | None],
    segments: Sequence[Segment],
) -> Tensor:
    y = x.double() @ dense.double().T
    if bias is not None:
        y += bias.double()
    for segment in segments:
        factors = table[segment.slot]
        if factors is None:
            continue
        for part in factors.parts:
            a = factors.a[part.first_rank : part.first_rank + part.b.shape[0]].double()
            delta = x[segment.start : segment.stop].double() @ a.T @ part.b.double()
            columns = slice(part.first_column, part.first_column + part.b.shape[1])
            y[segment.start : segment.stop, columns] += segment.weight * part.scale * delta
    return y


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 57, 100])
def test_equals_the_definition(
    ops: Ops, lora_input: MakeLora, num_rows: int, quantized: bool, dtype: torch.dtype
) -> None:
    x, bias = random(num_rows, K, seed=1).to(dtype), random(N, seed=2).to(dtype)
    canonical = quantize(random(N, K, seed=3))
    dense = nf4.dequantize(canonical)
    weight = ops.pack_nf4(canonical, dtype) if quantized else DenseWeight(dense.to(dtype))
    table = [make_factors(ranks, seed, dtype) for seed, ranks in enumerate(TABLE_RANKS)]
    segments = [s for s in SEGMENTS if s.stop <= num_rows] or [Segment(0, num_rows, 1)]
    found = ops.linear(
        x, weight, bias, lora_input(ops, table, segments, widths=WIDTHS, num_rows=num_rows)
    )
    assert found.dtype == dtype
    # Triton keeps absmax in float16: eleven bits.
    exact = 4e-4 if ops.NAME == "triton" and quantized else 1e-5
    tolerance = exact if dtype == torch.float32 else 1e-2
    assert relative_error(found, expected(x, dense, bias, table, segments)) < tolerance


@pytest.fixture
def mixed(lora_input: MakeLora) -> Callable[..., Tensor]:
    """57 rows of mixed versions through one dense projection, with or without them."""

    def run(ops: Ops, table: Sequence[LoraFactors | None], segments: Sequence[Segment]) -> Tensor:
        weight = DenseWeight(random(N, K, seed=1))
        lora = lora_input(ops, table, segments, widths=WIDTHS, num_rows=57) if segments else None
        return ops.linear(random(57, K), weight, None, lora)

    return run


def make_table() -> list[LoraFactors]:
    return [make_factors(ranks, seed, torch.float32) for seed, ranks in enumerate(TABLE_RANKS)]


def test_rows_outside_every_segment_are_the_base_bit_for_bit(
    ops: Ops, mixed: Callable[..., Tensor]
) -> None:
    plain, found = mixed(ops, [], []), mixed(ops, make_table(), SEGMENTS)
    assert torch.equal(found[21:40], plain[21:40])
    assert not torch.equal(found[:3], plain[:3])


def test_a_version_that_skips_this_projection_costs_and_changes_nothing(
    ops: Ops, mixed: Callable[..., Tensor]
) -> None:
    found = mixed(ops, [None, None], [Segment(0, 5, 1)])
    assert torch.equal(found, mixed(ops, [], []))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_tenants_nan_reaches_no_other_row(
    ops: Ops, mixed: Callable[..., Tensor], poison: float
) -> None:
    table = make_table()
    clean = mixed(ops, table, SEGMENTS)
    table[1].a.fill_(poison)
    table[1].parts[0].b.fill_(poison)
    found = mixed(ops, table, SEGMENTS)
    others = [row for row in range(57) if not 3 <= row < 20]
    assert torch.equal(found[others], clean[others])
    assert not torch.isfinite(found[3:20]).all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 21), min_size=1, max_size=6),
    slots=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    own=st.integers(0, 5),
)
def test_cpu_rows_have_the_same_bits_alone_and_in_any_batch(
    lora_input: MakeLora, lengths: list[int], slots: list[int], own: int
) -> None:
    own %= len(lengths)
    stops = torch.tensor(lengths).cumsum(0).tolist()
    segments = [
        Segment(stop - length, stop, slot)
        for length, stop, slot in zip(lengths, stops, slots, strict=False)
    ]
    x = random(stops[-1], K, seed=sum(lengths))
    weight = cpu_ops.pack_nf4(quantize(random(N, K, seed=1)), torch.float32)
    table = [make_factors(ranks, seed, torch.float32) for seed, ranks in enumerate(TABLE_RANKS)]

    def run(rows: Tensor, segments: list[Segment]) -> Tensor:
        lora = lora_input(cpu_ops, table, segments, widths=WIDTHS, num_rows=len(rows))
        return cpu_ops.linear(rows, weight, None, lora)

    rows = slice(segments[own].start, segments[own].stop)
    alone = run(x[rows], [Segment(0, lengths[own], slots[own])])
    assert torch.equal(alone, run(x, segments)[rows])
