"""NF4 is bitsandbytes' format, bit for bit."""

import pytest
import torch
from bitsandbytes import functional as bnb
from torch import Tensor

from multiflora.kernels import cpu_ops, nf4, torch_ops
from multiflora.kernels.cpu_ops import nf4 as cpu_nf4
from multiflora.kernels.quantize import quantize

SHAPES = [(1, 64), (32, 64), (96, 320), (257, 128), (64, 1024)]


def random_weight(shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double", [True, False])
def test_quantize_equals_bitsandbytes(shape: tuple[int, int], double: bool) -> None:
    weight = random_weight(shape)
    codes, state = bnb.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    ours = quantize(weight, double=double)
    assert torch.equal(ours.codes, codes.reshape(-1))
    assert torch.equal(nf4.dequantize(ours), bnb.dequantize_4bit(codes, state))


def test_the_codebook_is_that_of_bitsandbytes() -> None:
    expected = bnb.get_4bit_type("nf4", device="cpu")
    assert torch.equal(torch.tensor(nf4.CODEBOOK), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ops", [torch_ops, cpu_ops], ids=lambda module: module.NAME)
def test_pack_and_unpack_lose_nothing(ops, shape, dtype) -> None:
    canonical = quantize(random_weight(shape))
    packed = ops.pack_nf4(canonical, dtype)
    if packed.layout == cpu_nf4.PACKED_LAYOUT:
        pytest.skip("this layout keeps scales in bf16; see the interleave test")
    assert torch.equal(ops.unpack_nf4(packed, torch.float32), nf4.dequantize(canonical))


@pytest.mark.parametrize("num_rows", [384, 320, 256 + 48, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_packed_weight_unpack_as_they_do_in_the_whole(ops, num_rows, dtype) -> None:
    packed = ops.pack_nf4(quantize(random_weight((num_rows, 128))), dtype)
    whole = ops.unpack_nf4(packed, torch.float32)
    for start, stop in ((0, 128), (128, 256), (256, num_rows), (0, num_rows)):
        part = ops.slice_nf4(packed, start, stop)
        assert torch.equal(ops.unpack_nf4(part, torch.float32), whole[start:stop])


@pytest.mark.parametrize("shape", [(16, 64), (80, 192), (129, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_back_through_the_decoded_matrix(ops, shape, dtype) -> None:
    canonical = quantize(random_weight(shape))
    packed = ops.pack_nf4(canonical, dtype)
    matrix = ops.unpack_nf4(packed, torch.float32).double()
    for num_rows in (1, 7, 130):
        dy = torch.randn(num_rows, shape[0]).to(dtype)
        dx = ops.input_gradient(dy, packed)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert dx.dtype == dtype
        error = (dx.double() - dy.double() @ matrix).norm() / (dy.double() @ matrix).norm()
        assert error < tolerance


@pytest.mark.parametrize("shape", [(32, 64), (96, 320)])
def test_interleaved_codes_equal_bitsandbytes_packing(shape: tuple[int, int]) -> None:
    canonical = quantize(random_weight(shape), double=False)
    state = bnb.QuantState(
        absmax=canonical.absmax.clone(),
        shape=torch.Size(shape),
        dtype=torch.bfloat16,
        blocksize=64,
        quant_type="nf4",
        code=torch.tensor(nf4.CODEBOOK),
    )
    expected, state = bnb._convert_weight_packed_for_cpu(canonical.codes, state)
    assert torch.equal(cpu_nf4._interleave(canonical), expected)
    packed = cpu_nf4.Nf4Weight(
        cpu_nf4.PACKED_LAYOUT,
        {"codes": expected, "absmax": state.absmax},
        *shape,
        torch.bfloat16,
    )
    assert torch.equal(cpu_nf4._from_packed(packed).tensors["codes"], canonical.codes)


def test_float32_never_takes_the_packed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_nf4, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(cpu_nf4, "load_core", lambda: None)
    canonical = quantize(random_weight((64, 64)))
    assert cpu_nf4.pack_nf4(canonical, torch.float32).layout != cpu_nf4.PACKED_LAYOUT
    assert cpu_nf4.pack_nf4(canonical, torch.bfloat16).layout == cpu_nf4.PACKED_LAYOUT
    odd = quantize(random_weight((33, 64)))
    assert cpu_nf4.pack_nf4(odd, torch.bfloat16).layout == "canonical"


@pytest.mark.skipif(not cpu_ops.has_fast_bfloat16(), reason="needs AVX-512-BF16")
@pytest.mark.parametrize("num_rows", [1, 2, 5, 33])
def test_packed_matmul_is_close_and_batch_invariant(num_rows: int) -> None:
    canonical = quantize(random_weight((96, 320)))
    packed = cpu_nf4.packed_nf4(canonical)
    x = torch.randn(num_rows, 320).bfloat16()
    y = cpu_ops.linear(x, packed, None, None)
    expected = x.float() @ nf4.dequantize(canonical).T
    assert (y.float() - expected).norm() / expected.norm() < 1e-2
    assert torch.equal(cpu_ops.linear(x[:1], packed, None, None), y[:1])


def test_concatenation_is_exact() -> None:
    parts = [random_weight((n, 128)) for n in (32, 64, 7)]
    quantized = [quantize(part) for part in parts]
    stacked = nf4.dequantize(nf4.concatenate(quantized))
    assert torch.equal(stacked, torch.cat([nf4.dequantize(q) for q in quantized]))


def test_rows_that_do_not_align_with_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="--quantization none"):
        nf4.Nf4Tensor(torch.zeros(48, dtype=torch.uint8), torch.zeros(2), 1, 96)
