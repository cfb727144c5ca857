"""Decoding a slice of an NF4 matrix for a dense matmul: pays where one slice serves many rows."""

# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl

from .codebook import gather_plane, load_words, permute_planes


@triton.jit(do_not_specialize=["first_block"])
def nf4_dequantize_kernel(
    codes,
    absmax,
    words,
    values,
    out,
    N,
    num_groups,
    first_block,
    BN: tl.constexpr,
    PERMUTE: tl.constexpr,
):
    """out [rows from ``first_block`` on, K]; grid (column blocks, groups)."""
    block, group = tl.program_id(0), tl.program_id(1)
    source = (first_block + block).to(tl.int64) * num_groups + group
    features, lanes = tl.arange(0, BN), tl.arange(0, 16)
    scales = tl.load(absmax + source * BN + features).to(tl.float32)[:, None]
    tile = codes + source * (BN * 16)
    rows = block * BN + features
    at = out + rows[:, None].to(tl.int64) * (num_groups * 64) + group * 64 + lanes[None, :]
    mask = (first_block * BN + rows < N)[:, None]
    dtype: tl.constexpr = out.dtype.element_ty
    if PERMUTE:
        packed = tl.load(tile + features[:, None] * 16 + lanes[None, :])
        p0, p1, p2, p3 = permute_planes(packed, load_words(words), dtype)
    else:
        p0 = gather_plane(tile, features[:, None], lanes[None, :], values, 0)
        p1 = gather_plane(tile, features[:, None], lanes[None, :], values, 1)
        p2 = gather_plane(tile, features[:, None], lanes[None, :], values, 2)
        p3 = gather_plane(tile, features[:, None], lanes[None, :], values, 3)
    tl.store(at, (p0.to(tl.float32) * scales).to(dtype), mask=mask)
    tl.store(at + 16, (p1.to(tl.float32) * scales).to(dtype), mask=mask)
    tl.store(at + 32, (p2.to(tl.float32) * scales).to(dtype), mask=mask)
    tl.store(at + 48, (p3.to(tl.float32) * scales).to(dtype), mask=mask)
