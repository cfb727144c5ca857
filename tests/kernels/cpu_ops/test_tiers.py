"""What AVX-512 computes is what AVX2 computes, and its bfloat16 products are batch-invariant.

The instructions are emulated one by one, so that this holds where no processor has them; that the
compiler makes those instructions of the same source is read from the machine code.
"""

import shutil
import subprocess

import pytest
import torch
from torch import Tensor, bfloat16, float32

from multiflora.kernels import cpu_ops, nf4
from multiflora.kernels.cpu_ops import build, lora_linear
from multiflora.kernels.cpu_ops import nf4 as cpu_nf4
from multiflora.kernels.cpu_ops.core import Core
from multiflora.kernels.nf4 import Nf4Tensor
from multiflora.kernels.ops import DenseWeight, LoraFactors, LoraInput, LoraPart, Segment
from multiflora.kernels.quantize import quantize
from multiflora.kernels.staging import DirectStaging

SHAPES = [(16, 64), (48, 128), (80, 192), (144, 64)]
ROWS = (1, 2, 3, 4, 5, 7, 13)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiles(canonical: Nf4Tensor) -> tuple[Tensor, Tensor]:
    found = cpu_nf4._to_tiles(canonical)
    return found["codes"], found["absmax"]


@pytest.fixture
def paired(emulated_core: Core, monkeypatch: pytest.MonkeyPatch) -> Core:
    """The CPU backend as it is on a processor with AVX-512-BF16."""
    for module in (cpu_nf4, lora_linear):
        monkeypatch.setattr(module, "load_core", lambda: emulated_core)
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)
    return emulated_core


@pytest.mark.parametrize("shape", SHAPES)
def test_both_widths_give_the_same_bits(
    core: Core, emulated_core: Core, shape: tuple[int, int]
) -> None:
    codes, absmax = tiles(quantize(random(*shape, seed=1)))
    unpacked = core.nf4_unpack(codes, absmax)
    assert torch.equal(emulated_core.nf4_unpack(codes, absmax), unpacked)
    for num_rows in ROWS:
        dy = random(num_rows, shape[0])
        expected = core.nf4_backward(dy, codes, absmax)
        assert torch.equal(emulated_core.nf4_backward(dy, codes, absmax), expected)
        x = random(num_rows, shape[1])
        expected = core.nf4_matmul(x, codes, absmax)
        assert torch.equal(emulated_core.nf4_matmul(x, codes, absmax), expected)


@pytest.mark.parametrize("dtype", [float32, bfloat16])
@pytest.mark.parametrize("width", [5, 16, 41, 300])
def test_both_widths_add_the_same_deltas(
    core: Core, emulated_core: Core, width: int, dtype: torch.dtype
) -> None:
    a, b = random(7, 40, seed=1).to(dtype), random(7, width, seed=2).to(dtype)
    tables = cpu_ops.make_lora_tables([[width]], torch.device("cpu"))
    tables.write(0, {0: LoraFactors(a, (LoraPart(b, 0, 0, 0.5),))})
    segments = (Segment(0, 1, 0), Segment(1, 8, 0, 0.75))
    plan = cpu_ops.plan_lora(segments, num_rows=8, staging=DirectStaging(torch.device("cpu")))
    x, before = random(8, 40).to(dtype), random(8, width, seed=3)
    found = []
    for each in (core, emulated_core):
        y = before.clone()
        each.add_deltas(y, x, dtype, tables.projection(0).versions, plan.records)
        found.append(y)
    assert torch.equal(*found)
    widened = before.clone()
    core.add_deltas(widened, x.float(), dtype, tables.projection(0).versions, plan.records)
    assert torch.equal(found[0], widened)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_products_are_those_of_the_rounded_levels(
    paired: Core, shape: tuple[int, int]
) -> None:
    canonical = quantize(random(*shape, seed=1))
    packed = cpu_ops.pack_nf4(canonical, bfloat16)
    assert packed.layout == cpu_nf4.TILES_LAYOUT
    x = random(max(ROWS), shape[1]).bfloat16()
    ones = Nf4Tensor(canonical.codes, torch.ones_like(canonical.absmax), *shape)
    blocks = (len(canonical.absmax) // shape[0], nf4.BLOCK_SIZE)
    rounded = nf4.dequantize(ones).bfloat16().double().view(shape[0], *blocks)
    scaled = rounded * canonical.absmax.double().view(shape[0], -1, 1)
    expected = x.double() @ scaled.view(shape).T
    found = paired.nf4_matmul(x, packed.tensors["codes"], packed.tensors["absmax"])
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    whole = cpu_ops.linear(x, packed, None, None)
    assert torch.equal(whole, found.bfloat16())
    for start, stop in ((0, 1), (3, 5), (6, 13)):
        assert torch.equal(cpu_ops.linear(x[start:stop], packed, None, None), whole[start:stop])


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_gradients_flow_back_through_the_rounded_weights(
    paired: Core, shape: tuple[int, int]
) -> None:
    canonical = quantize(random(*shape, seed=1))
    packed = cpu_ops.pack_nf4(canonical, bfloat16)
    dy = random(135, shape[0]).bfloat16()
    rounded = nf4.dequantize(canonical).bfloat16()
    found = paired.nf4_backward(dy, packed.tensors["codes"], packed.tensors["absmax"])
    torch.testing.assert_close(found.double(), dy.double() @ rounded.double(), atol=1e-3, rtol=1e-5)
    whole = cpu_ops.input_gradient(dy, packed)
    assert torch.equal(whole, found.bfloat16())
    for start, stop in ((0, 1), (3, 8), (126, 135)):
        assert torch.equal(cpu_ops.input_gradient(dy[start:stop], packed), whole[start:stop])
    dense = cpu_ops.input_gradient(dy, DenseWeight(rounded))
    assert torch.equal(dense, whole)


@pytest.mark.parametrize("num_features", [1, 2, 63, 65, 130])
def test_bfloat16_gradients_flow_back_through_a_matrix_of_any_height(
    paired: Core, num_features: int
) -> None:
    weight = random(num_features, 128, seed=1).bfloat16()
    for num_rows in (1, 2, 3, 4, 5, 6, 300):
        dy = random(num_rows, num_features).bfloat16()
        found = paired.dense_backward(dy, weight)
        expected = dy.double() @ weight.double()
        torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)


def test_columns_that_make_no_whole_block_flow_back_by_torch(paired: Core) -> None:
    dy, weight = random(3, 24).bfloat16(), random(24, 72, seed=1).bfloat16()
    assert torch.equal(cpu_ops.input_gradient(dy, DenseWeight(weight)), dy @ weight)


@pytest.mark.parametrize("num_features", [1, 3, 4, 29])
def test_a_bfloat16_matrix_meets_bfloat16_rows(paired: Core, num_features: int) -> None:
    x, weight = random(9, 96).bfloat16(), random(num_features, 96, seed=1).bfloat16()
    found = cpu_ops.linear(x, DenseWeight(weight), None, None)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(found, expected.bfloat16(), atol=1e-3, rtol=1e-2)
    for row in (0, 5, 8):
        alone = cpu_ops.linear(x[row : row + 1], DenseWeight(weight), None, None)
        assert torch.equal(alone, found[row : row + 1])


def test_columns_that_make_no_whole_register_are_widened_instead(paired: Core) -> None:
    x, weight = random(3, 40).bfloat16(), random(5, 40, seed=1).bfloat16()
    found = cpu_ops.linear(x, DenseWeight(weight), None, None)
    assert torch.equal(found, paired.dense_matmul(x.float(), weight).bfloat16())


def test_deltas_of_bfloat16_factors_are_added_before_the_only_rounding(paired: Core) -> None:
    x, weight = random(6, 64).bfloat16(), cpu_ops.pack_nf4(quantize(random(48, 64)), bfloat16)
    a, b = random(3, 64, seed=1).bfloat16(), random(3, 48, seed=2).bfloat16()
    tables = cpu_ops.make_lora_tables([[48]], torch.device("cpu"))
    tables.write(0, {0: LoraFactors(a, (LoraPart(b, 0, 0, 0.5),))})
    plan = cpu_ops.plan_lora(
        (Segment(2, 5, 0),), num_rows=6, staging=DirectStaging(torch.device("cpu"))
    )
    bias = random(48, seed=3).bfloat16()
    found = cpu_ops.linear(x, weight, bias, LoraInput(tables.projection(0), plan))
    expected = paired.nf4_matmul(x, weight.tensors["codes"], weight.tensors["absmax"]) + bias
    expected[2:5] += 0.5 * (x[2:5].float() @ a.float().T) @ b.float()
    assert found.dtype == bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=2**-8)
    assert torch.equal(found[[0, 1, 5]], expected[[0, 1, 5]].bfloat16())


@pytest.mark.parametrize("dtype", [float32, bfloat16])
def test_each_tier_is_compiled_to_its_own_instructions(dtype: torch.dtype) -> None:
    path = build.core_path("avx512" if dtype == float32 else "avx512-bf16")
    if not path.exists() or not (objdump := shutil.which("objdump")):
        pytest.skip("the core is not built here, or binutils are missing")
    symbol = f"multiflora_nf4_matmul_{str(dtype)[6:]}"
    listing = subprocess.run([objdump, "-d", str(path)], capture_output=True, text=True).stdout
    assert f"<{symbol}>" in listing
    look_up, multiply = ("vpermps", "vfmadd") if dtype == float32 else ("vpermw", "vdpbf16ps")
    lines = [line for line in listing.splitlines() if "%zmm" in line]
    assert sum(look_up in line for line in lines) >= 32
    assert sum(multiply in line for line in lines) >= 64
