"""What only a real device can show: replayed graphs, one instruction family, overlapping launches.

The parity tests of this folder run on a device too, where there is one.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiflora.engine.graphs import CudaCapture
from multiflora.kernels import nf4
from multiflora.kernels.ops import LoraFactors, LoraInput, LoraPart, Segment
from multiflora.kernels.quantize import quantize
from multiflora.kernels.staging import PackedStaging
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps
from multiflora.kernels.triton_ops.self_check import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DTYPES = [torch.bfloat16, torch.float16]
# qkv of Llama-3.1-8B.
WIDTHS, K = (4096, 1024, 1024), 4096
N = sum(WIDTHS)


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    return torch.device("cuda")


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return scale * torch.randn(*shape, dtype=dtype, device="cuda", generator=generator)


@functools.cache
def quantized_base() -> nf4.Nf4Tensor:
    return quantize(0.02 * torch.randn(N, K, generator=torch.Generator().manual_seed(1)))


class Projection:
    """A large quantized projection with four versions of different rank."""

    def __init__(self, ops: TritonOps, dtype: torch.dtype) -> None:
        self.ops, self.dtype = ops, dtype
        canonical = quantized_base()
        packed = ops.pack_nf4(canonical, dtype)
        for name, tensor in packed.tensors.items():
            packed.tensors[name] = tensor.cuda()
        self.weight = packed
        self.dense = nf4.dequantize(canonical).cuda().double()
        self.versions = [self.version(rank, seed) for seed, rank in enumerate((16, 8, 64, 3))]
        self.tables = ops.make_lora_tables([WIDTHS], torch.device("cuda"))
        for slot, factors in enumerate(self.versions):
            self.tables.write(slot, {0: factors})

    def version(self, rank: int, seed: int) -> LoraFactors:
        parts = tuple(
            LoraPart(
                random(rank, width, dtype=self.dtype, seed=seed + place, scale=0.05),
                place * rank,
                sum(WIDTHS[:place]),
                0.5,
            )
            for place, width in enumerate(WIDTHS)
        )
        a = random(3 * rank, K, dtype=self.dtype, seed=40 + seed, scale=0.02)
        return LoraFactors(a, parts)

    def lora(self, segments: list[Segment], num_rows: int, staging: PackedStaging) -> LoraInput:
        staging.begin()
        plan = self.ops.plan_lora(segments, num_rows=num_rows, staging=staging)
        staging.commit()
        return LoraInput(self.tables.projection(0), plan)

    def expected(self, x: Tensor, segments: list[Segment]) -> Tensor:
        y = x.double() @ self.dense.T
        for segment in segments:
            rows, factors = slice(segment.start, segment.stop), self.versions[segment.slot]
            for part in factors.parts:
                a = factors.a[part.first_rank : part.first_rank + part.b.shape[0]].double()
                columns = slice(part.first_column, part.first_column + part.b.shape[1])
                delta = x[rows].double() @ a.T @ part.b.double()
                y[rows, columns] += segment.weight * part.scale * delta
        return y


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def staging(*, is_static: bool) -> PackedStaging:
    return PackedStaging(torch.device("cuda"), 1 << 16, is_static=is_static)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_self_check_passes(cuda, dtype: torch.dtype, batch_invariant: bool) -> None:
    ops = TritonOps(Accelerator.open(cuda), batch_invariant=batch_invariant)
    assert all(result.passed for result in check(ops, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 33, 64, 100, 256, 300])
def test_a_large_projection_equals_its_definition_and_itself(
    cuda, rows: int, batch_invariant: bool, dtype: torch.dtype
) -> None:
    projection = Projection(
        TritonOps(Accelerator.open(cuda), batch_invariant=batch_invariant), dtype
    )
    x = random(rows, K, dtype=dtype, seed=7)
    cut = rows // 2
    segments = [Segment(0, cut, 0), Segment(cut, rows, 1, 0.7), Segment(cut, rows, 2, -0.3)]
    segments = [segment for segment in segments if segment.stop > segment.start]
    lora = projection.lora(segments, rows, staging(is_static=False))
    found = projection.ops.linear(x, projection.weight, None, lora)
    assert relative(found, projection.expected(x, segments)) < 5e-3
    for _ in range(5):
        assert torch.equal(found, projection.ops.linear(x, projection.weight, None, lora))


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_batch_invariant_mode_the_bits_of_a_row_ignore_the_number_of_rows(
    cuda, dtype: torch.dtype
) -> None:
    projection = Projection(TritonOps(Accelerator.open(cuda), batch_invariant=True), dtype)
    x = random(300, K, dtype=dtype, seed=7)
    alone = projection.ops.linear(x[:1], projection.weight, None, None)
    for rows in (2, 16, 17, 32, 33, 64, 128, 300):
        among = projection.ops.linear(x[:rows], projection.weight, None, None)
        assert torch.equal(among[:1], alone), rows


def test_one_tenants_nan_reaches_no_other_row(cuda) -> None:
    projection = Projection(TritonOps(Accelerator.open(cuda)), torch.bfloat16)
    x = random(12, K, dtype=torch.bfloat16)
    segments = [Segment(0, 4, 0), Segment(4, 8, 1)]
    lora = projection.lora(segments, 12, staging(is_static=False))
    clean = projection.ops.linear(x, projection.weight, None, lora)
    projection.versions[1].a.fill_(float("nan"))
    for part in projection.versions[1].parts:
        part.b.fill_(float("nan"))
    found = projection.ops.linear(x, projection.weight, None, lora)
    assert torch.equal(found[:4], clean[:4])
    assert torch.equal(found[8:], clean[8:])
    assert found[4:8].isnan().all()


def replayable(projection: Projection, rows: int) -> tuple[Callable[..., Tensor], Tensor]:
    """A captured projection of ``rows`` rows, run by its segments; and its input tensor."""
    x, static = random(rows, K, dtype=projection.dtype, seed=3), staging(is_static=True)

    def step(segments: list[Segment]) -> Callable[[], Tensor]:
        lora = projection.lora(segments, rows, static)
        return lambda: projection.ops.linear(x, projection.weight, None, lora)

    captured = CudaCapture()(step([Segment(0, 1, 0)]))

    def replay(segments: list[Segment]) -> Tensor:
        projection.lora(segments, rows, static)
        return captured.replay().clone()

    return replay, x


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_captured_graph_serves_any_adapters_and_swaps(cuda, dtype: torch.dtype) -> None:
    projection = Projection(TritonOps(Accelerator.open(cuda)), dtype)
    replay, x = replayable(projection, 16)
    for segments in (
        [Segment(i, i + 1, i % 4) for i in range(8)],
        [],
        [Segment(0, 3, 2), Segment(3, 9, 0, 0.5), Segment(3, 9, 3, 0.5)],
    ):
        assert relative(replay(segments), projection.expected(x, segments)) < 5e-3
    projection.versions[0] = projection.version(24, seed=99)
    projection.tables.write(0, {0: projection.versions[0]})
    segments = [Segment(0, 16, 0)]
    assert relative(replay(segments), projection.expected(x, segments)) < 5e-3


@pytest.mark.parametrize("captured", [False, True])
def test_overlapping_launches_give_the_same_bits_in_any_company(cuda, captured: bool) -> None:
    """Chains without a wait: a matmul that started too early, or a shared buffer, would show."""
    projection = Projection(TritonOps(Accelerator.open(cuda)), torch.bfloat16)
    plans = [
        projection.lora(segments, 16, staging(is_static=False))
        for segments in ([Segment(0, 16, 2)], [Segment(0, 8, 0), Segment(8, 16, 1)])
    ]
    sources = [random(16, K, dtype=torch.bfloat16, seed=seed) for seed in range(8)]
    wanted = []
    for index, source in enumerate(sources):
        wanted.append(projection.ops.linear(source, projection.weight, None, plans[index % 2]))
        torch.cuda.synchronize()
    scratch = torch.full_like(sources[0], float("nan"))

    def chain() -> Tensor:
        found = []
        for index, source in enumerate(sources):
            # By a kernel: the shrink that follows may begin while it ends.
            torch.mul(source, 1, out=scratch)
            found.append(projection.ops.linear(scratch, projection.weight, None, plans[index % 2]))
            scratch.fill_(float("nan"))
        return torch.stack(found)

    run = CudaCapture()(chain).replay if captured else chain
    for _ in range(50):
        assert torch.equal(run(), torch.stack(wanted))
