import pytest
import torch
from bitsandbytes import functional

from multiflora.kernels import nf4, quantize

SHAPES = [(1, 64), (3, 192), (130, 128), (40, 8192)]


def random_weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    weight[0, :64] = 0
    weight[-1, -64:] *= 1e-6
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_equal_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_weight(shape, dtype)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = quantize.encode(weight)
    assert torch.equal(ours.codes, codes.reshape(-1))
    assert torch.equal(ours.absmax, state.absmax)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_double_quantization_equals_bitsandbytes(shape: tuple[int, int]) -> None:
    weight = random_weight(shape, torch.float32)
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    ours = quantize.quantize(weight)
    assert torch.equal(ours.codes, codes.reshape(-1))
    assert torch.equal(nf4.dequantize(ours), functional.dequantize_4bit(codes, state))


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight((50, 448), torch.bfloat16)
    whole = quantize.encode(weight)
    monkeypatch.setitem(quantize.PIECE_WEIGHTS, "cpu", 1 << 8)
    pieces = quantize.encode(weight)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.absmax, pieces.absmax)


def test_values_on_a_boundary_round_as_in_bitsandbytes() -> None:
    codebook = torch.tensor(nf4.CODEBOOK)
    weight = torch.ones(1, 64)
    weight[0, :15] = (codebook[:-1] + codebook[1:]) / 2
    codes, _ = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(quantize.encode(weight).codes, codes.reshape(-1))


def test_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    quantize.encode(random_weight((3, 192), torch.float32))
    assert torch.get_num_threads() == before
