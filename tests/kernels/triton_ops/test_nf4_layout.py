"""The planar layout permutes nibbles and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.kernels import nf4
from multiflora.kernels.quantize import quantize
from multiflora.kernels.triton_ops.codebook import table_words
from multiflora.kernels.triton_ops.nf4_layout import TiledShape, pack_nf4, unpack_codes, unpack_nf4

SHAPES = [(1, 64), (64, 64), (96, 320), (128, 128), (257, 192), (2304, 64)]


def random_weight(shape: tuple[int, int]) -> nf4.Nf4Tensor:
    return quantize(torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])))


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back_bit_for_bit(shape: tuple[int, int]) -> None:
    canonical = random_weight(shape)
    packed = pack_nf4(canonical, torch.bfloat16)
    assert torch.equal(unpack_codes(packed), canonical.codes)
    assert packed.num_bytes <= 1.07 * canonical.codes.numel() * -(-shape[0] // 64) * 64 / shape[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_in_float16_lose_eleven_bits_at_most(shape: tuple[int, int]) -> None:
    canonical = random_weight(shape)
    found = unpack_nf4(pack_nf4(canonical, torch.bfloat16), torch.float32)
    torch.testing.assert_close(found, nf4.dequantize(canonical), rtol=2**-11, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scales_outside_float16_are_kept_in_float32_and_decode_exactly(scale: float) -> None:
    canonical = quantize(scale * torch.randn(70, 128, generator=torch.Generator().manual_seed(1)))
    packed = pack_nf4(canonical, torch.float16)
    assert packed.tensors["absmax"].dtype == torch.float32
    assert torch.equal(unpack_nf4(packed, torch.float32), nf4.dequantize(canonical))


def test_rows_of_the_padding_decode_to_zero() -> None:
    packed = pack_nf4(random_weight((65, 64)), torch.bfloat16)
    assert TiledShape(65, 64).num_blocks == 2
    assert not packed.tensors["absmax"][1, 0, 1:].any()
    words = packed.tensors["codes"][1, 0, 1:]
    assert (words == 0x7777).all()


def look_up(word: int, tables: tuple[int, ...]) -> list[int]:
    """The inline assembly of ``codebook``, instruction by instruction: four pairs of values."""
    planes = []
    selector = word & 0x77777777
    choice = ((word >> 1) & 0x44444444) | 0x32103210
    for shift in (0, 16):
        s, m = selector >> shift, choice >> shift
        t = tables
        low = permute(permute(t[0], t[1], s), permute(t[2], t[3], s), m)
        high = permute(permute(t[4], t[5], s), permute(t[6], t[7], s), m)
        planes += [permute(low, high, 0x5140), permute(low, high, 0x7362)]
    return planes


def permute(a: int, b: int, selector: int) -> int:
    """PTX ``prmt.b32``, with the sign replication of selector bit 3."""
    source = (a & 0xFFFFFFFF).to_bytes(4, "little") + (b & 0xFFFFFFFF).to_bytes(4, "little")
    out = []
    for place in range(4):
        nibble = (selector >> (4 * place)) & 0xF
        byte = source[nibble & 7]
        out.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bfloat16, torch.float16]))
def test_byte_permutes_look_up_every_code_in_its_place(word: int, dtype: torch.dtype) -> None:
    bits = torch.tensor(nf4.CODEBOOK).to(dtype).view(torch.int16).tolist()
    found = look_up(word, table_words(dtype))
    for plane, pair in enumerate(found):
        for odd in range(2):
            code = (word >> (4 * (2 * plane + odd))) & 0xF
            assert (pair >> (16 * odd)) & 0xFFFF == bits[code] & 0xFFFF


def test_a_word_of_the_layout_holds_the_nibbles_that_the_permutes_expect() -> None:
    canonical = random_weight((64, 64))
    codes = torch.stack((canonical.codes >> 4, canonical.codes & 0xF), -1).view(64, 64)
    words = pack_nf4(canonical, torch.bfloat16).tensors["codes"].view(64, 8, 2).int() & 0xFFFF
    for row, pair in ((0, 0), (17, 5), (63, 7)):
        word = int(words[row, pair, 0]) | int(words[row, pair, 1]) << 16
        nibbles = [(word >> (4 * place)) & 0xF for place in range(8)]
        expected = [int(codes[row, 16 * p + 2 * pair + e]) for p in range(4) for e in range(2)]
        assert nibbles == expected
