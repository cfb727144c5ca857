"""``x @ A.T`` per segment, in split-K slabs that the expand adds in order."""

# pyright: reportAttributeAccessIssue=false
import triton
import triton.language as tl

from .lora_epilogue import ENTRY_A, ENTRY_NUM_RANKS, SEGMENT_FIELDS


@triton.jit(do_not_specialize=["num_tiles", "shrunk_rows"])
def lora_shrink_kernel(
    x,
    shrunk,
    shrink_tiles,
    num_tiles,
    segments,
    entries,
    entry_stride,
    shrunk_rows,
    K,
    BM: tl.constexpr,
    BK: tl.constexpr,
    RB: tl.constexpr,
    NUM_SLABS: tl.constexpr,
    V_STRIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """shrunk float32 [NUM_SLABS, shrunk_rows, V_STRIDE]; grid (programs, NUM_SLABS, rank walk).

    Every slab is stored, never added to: nothing needs zeroing and no order is left to chance.
    """
    if PDL:
        # In this order: the matmul that starts next must find a finished x.
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slab = tl.program_id(1)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        index = tl.load(shrink_tiles + 2 * tile)
        if index >= 0:
            offset = tl.load(shrink_tiles + 2 * tile + 1) + tl.arange(0, BM)
            segment = segments + index * SEGMENT_FIELDS
            rows = tl.load(segment + 1) + offset
            present = (rows < tl.load(segment + 2))[:, None]
            entry = entries + tl.load(segment).to(tl.int64) * entry_stride
            num_ranks = tl.load(entry + ENTRY_NUM_RANKS).to(tl.int32)
            a = tl.load(entry + ENTRY_A).to(tl.pointer_type(x.dtype.element_ty))
            a = tl.multiple_of(a, 16)
            share = tl.cdiv(tl.cdiv(K, BK), NUM_SLABS) * BK
            first_k, last_k = slab * share, tl.minimum((slab + 1) * share, K)
            out = (
                shrunk
                + (slab * shrunk_rows + tl.load(segment + 3) + offset)[:, None].to(tl.int64)
                * V_STRIDE
            )
            for r in range(tl.program_id(2) * RB, num_ranks, tl.num_programs(2) * RB):
                ranks = r + tl.arange(0, RB)
                acc = tl.zeros((BM, RB), tl.float32)
                for k in range(first_k, last_k, BK):
                    ks = k + tl.arange(0, BK)
                    inside = (ks < last_k)[None, :]
                    x_part = tl.load(
                        x + rows[:, None].to(tl.int64) * K + ks[None, :],
                        mask=present & inside,
                        other=0.0,
                    )
                    a_part = tl.load(
                        a + ranks[:, None].to(tl.int64) * K + ks[None, :],
                        mask=(ranks < num_ranks)[:, None] & inside,
                        other=0.0,
                    )
                    if UPCAST:
                        acc = tl.dot(
                            x_part.to(tl.float32),
                            tl.trans(a_part.to(tl.float32)),
                            acc,
                            input_precision="ieee",
                        )
                    else:
                        acc = tl.dot(x_part, tl.trans(a_part), acc)
                tl.store(out + ranks[None, :], acc, mask=present & (ranks < num_ranks)[None, :])
