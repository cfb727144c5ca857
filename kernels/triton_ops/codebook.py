# pyright: reportArgumentType=false
"""Sixteen-entry look-up of NF4 codes, four planes at a time.

A 64-weight group of one row is sixteen int16 words. Words ``2j`` and ``2j + 1`` form one 32-bit
word whose nibbles, low to high, are the codes of ``p0e0 p0e1 p1e0 p1e1 p2e0 p2e1 p3e0 p3e1``:
plane ``p`` holds the weights ``16 p .. 16 p + 15`` of the group, ``e0`` and ``e1`` are its weights
``2j`` and ``2j + 1``. One byte permute looks four codes up at once in a table of bytes, and two of
them interleave low and high bytes into pairs of adjacent weights, as a tensor-core operand wants
them: 2.6 integer instructions a weight, where a table in memory costs 4 to 6 and three times the
loads.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..nf4 import CODEBOOK

# $0-$3 are the planes' pairs, $4 two int16 words, then eight table words. Every 32-bit operand
# occurs twice because two elements are processed at once; the even ones are read. Selector bit 3
# would replicate a sign, so it is masked off and chooses between the table's halves instead.
_LOOK_UP: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 s, m, a, b, lo, hi;
    and.b32 s, $4, 0x77777777;
    shr.u32 m, $4, 1;
    lop3.b32 m, m, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 a, $5, $7, s;
    prmt.b32 b, $9, $11, s;
    prmt.b32 lo, a, b, m;
    prmt.b32 a, $13, $15, s;
    prmt.b32 b, $17, $19, s;
    prmt.b32 hi, a, b, m;
    prmt.b32 $0, lo, hi, 0x5140;
    prmt.b32 $1, lo, hi, 0x7362;
    shr.u32 s, s, 16;
    shr.u32 m, m, 16;
    prmt.b32 a, $5, $7, s;
    prmt.b32 b, $9, $11, s;
    prmt.b32 lo, a, b, m;
    prmt.b32 a, $13, $15, s;
    prmt.b32 b, $17, $19, s;
    prmt.b32 hi, a, b, m;
    prmt.b32 $2, lo, hi, 0x5140;
    prmt.b32 $3, lo, hi, 0x7362;
    }"""
)
_CONSTRAINTS: tl.constexpr = tl.constexpr("=&r,=&r,=&r,=&r," + ",".join(["r"] * 17))


def table_words(dtype: torch.dtype) -> tuple[int, ...]:
    """Eight 32-bit words: the low bytes of the 16 values in ``dtype``, then the high bytes."""
    values = torch.tensor(CODEBOOK).to(dtype).view(torch.uint8).tolist()
    low, high = bytes(values[0::2]), bytes(values[1::2])
    return struct.unpack("<8i", low + high)


def look_up_tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The words int32 [8] of the permutes, and the values [16] of the portable path."""
    # float32 occurs in the interpreter only, which has no permutes.
    words = torch.tensor(table_words(dtype) if dtype.itemsize == 2 else [0] * 8, dtype=torch.int32)
    return words.to(device), torch.tensor(CODEBOOK).to(dtype).to(device)


@triton.jit
def load_words(words):
    """The eight table words as scalars, loaded once: literals would be rebuilt at every use."""
    return (
        tl.load(words),
        tl.load(words + 1),
        tl.load(words + 2),
        tl.load(words + 3),
        tl.load(words + 4),
        tl.load(words + 5),
        tl.load(words + 6),
        tl.load(words + 7),
    )


@triton.jit
def permute_planes(packed, w, dtype: tl.constexpr):
    """int16 [rows, 16] -> four planes [rows, 16] of ``dtype`` by byte permutes."""
    p0, p1, p2, p3 = tl.inline_asm_elementwise(
        _LOOK_UP,
        _CONSTRAINTS,
        [packed, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]],
        dtype=(tl.int16, tl.int16, tl.int16, tl.int16),
        is_pure=True,
        pack=2,
    )
    return (
        p0.to(dtype, bitcast=True),
        p1.to(dtype, bitcast=True),
        p2.to(dtype, bitcast=True),
        p3.to(dtype, bitcast=True),
    )


@triton.jit
def gather_plane(group, rows, lanes, values, plane: tl.constexpr):
    """One plane [rows, 16] by a table in memory: runs everywhere, three times slower."""
    word = rows * 16 + (lanes & ~1) + plane // 2
    packed = tl.load(group + word).to(tl.int32)
    code = (packed >> (4 * (2 * (plane % 2) + (lanes & 1)))) & 0xF
    return tl.load(values + code)
