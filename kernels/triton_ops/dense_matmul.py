"""A dense matmul whose sums never depend on the number of rows; cuBLAS changes its algorithm."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])
def dense_matmul_kernel(
    x,
    weight,
    bias,
    y,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y [M, N] = x [M, K] @ weight [N, K].T + bias; grid (column blocks, row tiles)."""
    block, tile = tl.program_id(0), tl.program_id(1)
    rows = tile * BM + tl.arange(0, BM)
    cols = block * BN + tl.arange(0, BN)
    x_tile = x + rows[:, None].to(tl.int64) * K
    w_tile = weight + cols[:, None].to(tl.int64) * K
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, K, BK, num_stages=STAGES):
        ks = k + tl.arange(0, BK)[None, :]
        a = tl.load(x_tile + ks, mask=(rows < M)[:, None] & (ks < K), other=0.0)
        b = tl.load(w_tile + ks, mask=(cols < N)[:, None] & (ks < K), other=0.0)
        if UPCAST:
            acc = tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, tl.trans(b), acc)
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=(rows < M)[:, None] & (cols < N)[None, :])
