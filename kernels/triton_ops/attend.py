# pyright: reportGeneralTypeIssues=false
"""Attention of a tile of rows over one chunk of keys, and how chunks meet.

Decode and prefill share these two steps. A chunk starts at a multiple of its size, counted from the
request's first token, and its keys are visited in tiles that start at multiples of ``BN``; a chunk
begins with fresh sums, and chunks merge in their order. Keys that a row may not see add exact zeros
and change no sum, so a row goes through the same arithmetic whichever rows share its tile.

Products that are added to something are spelled ``tl.fma``: the compiler would contract them as it
likes, and not alike in two kernels.
"""

import triton
import triton.language as tl


@triton.jit
def start_sums(BM: tl.constexpr, DP: tl.constexpr):
    """Of no keys: largest score (in powers of two), sum of weights, weighted sum of values."""
    return (
        tl.full((BM,), float("-inf"), tl.float32),
        tl.zeros((BM,), tl.float32),
        tl.zeros((BM, DP), tl.float32),
    )


@triton.jit
def attend_chunk(
    q, keys_of_head, values_of_head, table, first_key, last_key, positions, scale,
    D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, KV_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums of rows q [BM, DP] at ``positions`` [BM] over keys ``[first_key, last_key)``.

    ``table`` lists the request's blocks of P tokens; ``scale`` turns products into powers of two.
    Other keys are not read: what a block holds past its last token may be anything.
    """
    dims = tl.arange(0, DP)
    peak, norm, acc = start_sums(BM, DP)
    for start in tl.range(first_key // BN * BN, last_key, BN, num_stages=STAGES):
        keys = start + tl.arange(0, BN)
        present = (keys >= first_key) & (keys < last_key)
        block = tl.load(table + keys // P, mask=present, other=0).to(tl.int64)
        at = (block * P + keys % P)[:, None] * KV_STRIDE + dims[None, :]
        inside = present[:, None] & (dims < D)[None, :]
        k = tl.load(keys_of_head + at, mask=inside, other=0.0)
        v = tl.load(values_of_head + at, mask=inside, other=0.0)
        if UPCAST:
            # The interpreter computes nonsense in bfloat16.
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        visible = keys[None, :] <= positions[:, None]
        if WINDOW > 0:
            visible &= keys[None, :] > positions[:, None] - WINDOW
        scores = tl.where(visible, scores, float("-inf"))
        largest = tl.maximum(peak, tl.max(scores, 1) * scale)
        # A row that has seen no key has no largest score; any finite one will do.
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        p = tl.exp2(tl.fma(scores, scale, -shift[:, None]))
        fade = tl.exp2(peak - shift)
        norm = tl.fma(norm, fade, tl.sum(p, 1))
        acc = tl.dot(p.to(q.dtype), v, acc * fade[:, None], input_precision="ieee")
        peak = largest
    return peak, norm, acc


@triton.jit
def merge(peak, norm, acc, chunk_peak, chunk_norm, chunk_acc):
    """The sums [BM], [BM], [BM, DP] so far and those of the next chunk as one."""
    largest = tl.maximum(peak, chunk_peak)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    fade, chunk_fade = tl.exp2(peak - shift), tl.exp2(chunk_peak - shift)
    norm = tl.fma(norm, fade, chunk_norm * chunk_fade)
    acc = tl.fma(acc, fade[:, None], chunk_acc * chunk_fade[:, None])
    return largest, norm, acc


@triton.jit
def weighted_mean(norm, acc):
    """The result of finished sums; zero for a padding row, which saw no key."""
    return acc / tl.where(norm == 0.0, 1.0, norm)[:, None]


@triton.jit
def load_rows(address, mask, UPCAST: tl.constexpr):
    rows = tl.load(address, mask=mask, other=0.0)
    if UPCAST:
        rows = rows.to(tl.float32)
    return rows
