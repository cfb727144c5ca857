"""The paths of the projection op agree, isolate tenants, and keep a row's bits to itself."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from multiflora.kernels import nf4
from multiflora.kernels.ops import LoraFactors, LoraInput, LoraPart, Segment
from multiflora.kernels.quantize import quantize
from multiflora.kernels.staging import DirectStaging, PackedStaging
from multiflora.kernels.triton_ops import linear, lora_plan
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps
from multiflora.kernels.triton_ops.interpreter import INTERPRETED

# On a GPU where there is one, else in the interpreter.
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [] if INTERPRETED else pytest.mark.gpu
# Slices that end inside a column block, and a K that no split divides.
WIDTHS, K = (96, 24, 40), 320
N = sum(WIDTHS)
RANKS = [(8, 8, 8), (1, 0, 3), (0, 40, 0), (20, 16, 5)]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def make_ops(*, batch_invariant: bool = False) -> TritonOps:
    return TritonOps(Accelerator.open(DEVICE), batch_invariant=batch_invariant)


def make_factors(ranks: Sequence[int], seed: int, dtype: torch.dtype) -> LoraFactors:
    parts, first_rank, first_column = [], 0, 0
    for place, (rank, width) in enumerate(zip(ranks, WIDTHS, strict=True)):
        if rank:
            b = random(rank, width, seed=seed + 10 + place, scale=0.3).to(dtype)
            parts.append(LoraPart(b, first_rank, first_column, 0.5 + place))
        first_rank += rank
        first_column += width
    return LoraFactors(random(first_rank, K, seed=seed, scale=0.1).to(dtype), tuple(parts))


class Projection:
    """A quantized projection with four versions, in float16."""

    def __init__(self, ops: TritonOps, dtype: torch.dtype = torch.float16) -> None:
        self.ops = ops
        canonical = quantize(random(N, K, seed=3).cpu())
        self.dense = nf4.dequantize(canonical).to(DEVICE)
        self.weight = ops.pack_nf4(canonical, dtype)
        for name, tensor in self.weight.tensors.items():
            self.weight.tensors[name] = tensor.to(DEVICE)
        self.versions = [make_factors(ranks, seed, dtype) for seed, ranks in enumerate(RANKS)]
        self.tables = ops.make_lora_tables([WIDTHS], DEVICE)
        for slot, factors in enumerate(self.versions):
            self.tables.write(slot, {0: factors})

    def __call__(
        self, x: Tensor, segments: Sequence[Segment], bias: Tensor | None = None
    ) -> Tensor:
        plan = self.ops.plan_lora(segments, num_rows=len(x), staging=DirectStaging(DEVICE))
        lora = LoraInput(self.tables.projection(0), plan) if segments else None
        return self.ops.linear(x, self.weight, bias, lora)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


MIXED = [Segment(0, 3, 0), Segment(3, 20, 1), Segment(3, 20, 2, -0.5), Segment(21, 40, 3)]


@pytest.mark.parametrize("multiprocessors", [1, 3, 64])
def test_every_split_of_k_gives_the_same_product(
    monkeypatch: pytest.MonkeyPatch, multiprocessors: int
) -> None:
    from multiflora.kernels.triton_ops import accelerator

    monkeypatch.setattr(accelerator, "_INTERPRETED_MULTIPROCESSORS", multiprocessors)
    projection = Projection(make_ops())
    x = random(5, K, seed=1).half()
    wanted = x.double() @ projection.dense.double().T
    for _ in range(2):
        # Twice: the arrival counters must be back at zero.
        assert relative(projection(x, []), wanted) < 1e-3
    arrivals = projection.ops.accelerator.workspace.get("arrivals", 1, torch.int32)
    assert not arrivals.any()


def test_the_fused_and_the_separate_expand_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias = random(40, K, seed=1).half(), random(N, seed=2).half()
    fused = Projection(make_ops())(x, MIXED, bias)
    monkeypatch.setattr(lora_plan, "_LONGEST_WALK", 0)
    separate = Projection(make_ops())(x, MIXED, bias)
    assert not torch.equal(fused, separate)  # one rounding more
    assert relative(separate, fused) < 1e-3


@pytest.mark.parametrize("with_bias", [True, False])
def test_many_rows_through_decoded_slices_agree_with_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool
) -> None:
    x, bias = random(40, K, seed=1).half(), random(N, seed=2).half() if with_bias else None
    fused = Projection(make_ops())(x, MIXED, bias)
    monkeypatch.setattr(linear, "FUSED_ROWS", 16)
    monkeypatch.setattr(linear, "_SLICE_BYTES", 2 * K * 64)
    assert relative(Projection(make_ops())(x, MIXED, bias), fused) < 1e-3


@pytest.mark.parametrize("separate", [False, True])
def test_one_tenants_nan_reaches_no_other_row(
    monkeypatch: pytest.MonkeyPatch, separate: bool
) -> None:
    if separate:
        monkeypatch.setattr(lora_plan, "_LONGEST_WALK", 0)
    projection, x = Projection(make_ops()), random(40, K, seed=1).half()
    clean = projection(x, MIXED)
    projection.versions[1].a.fill_(float("nan"))
    for part in projection.versions[1].parts:
        part.b.fill_(float("nan"))
    found = projection(x, MIXED)
    others = [row for row in range(40) if not 3 <= row < 20]
    assert torch.equal(found[others], clean[others])
    # Its middle slice has no factors, so it stays clean even there.
    assert torch.equal(found[:, 96:120], clean[:, 96:120])
    assert found[3:20, :96].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_padding_rows_of_a_static_step_change_no_bit(dtype: torch.dtype) -> None:
    projection = Projection(make_ops(batch_invariant=True), dtype)
    x, segments = random(16, K, seed=1).to(dtype), [Segment(0, 1, 0), Segment(1, 3, 3)]
    staging = PackedStaging(DEVICE, 4096, is_static=True)
    staging.begin()
    plan = projection.ops.plan_lora(segments, num_rows=16, staging=staging)
    staging.commit()
    padded = projection.ops.linear(
        x, projection.weight, None, LoraInput(projection.tables.projection(0), plan)
    )
    assert torch.equal(padded[:3], projection(x[:3], segments))
    assert torch.equal(padded[3:], projection(x[3:], []))


@pytest.fixture
def exact_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's dot sums in float64: numpy's own float32 sums depend on the shape."""
    from triton.runtime import interpreter

    def dot(self: object, a, b, d, *_: object):
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return interpreter.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.mark.usefixtures("exact_dot")
@pytest.mark.parametrize("own", [0, 1, 2, 3])
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (3, 21, 2, 17)])
def test_in_batch_invariant_mode_a_row_has_the_same_bits_alone_and_in_any_batch(
    lengths: tuple[int, ...], own: int
) -> None:
    stops = torch.tensor(lengths).cumsum(0).tolist()
    segments = [
        Segment(stop - length, stop, slot)
        for slot, (length, stop) in enumerate(zip(lengths, stops, strict=True))
    ]
    # A blend of the first run's rows with another version.
    segments.insert(1, Segment(0, lengths[0], 3, -0.5))
    projection = Projection(make_ops(batch_invariant=True))
    x = random(stops[-1], K, seed=sum(lengths)).half()
    rows = slice(stops[own] - lengths[own], stops[own])
    mine = [
        Segment(0, lengths[own], segment.slot, segment.weight)
        for segment in segments
        if segment.start == rows.start
    ]
    assert torch.equal(projection(x, segments)[rows], projection(x[rows], mine))


def test_results_are_written_whole_and_the_same_twice() -> None:
    projection, x = Projection(make_ops()), random(40, K, seed=1).half()
    first, second = projection(x, MIXED), projection(x, MIXED)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
