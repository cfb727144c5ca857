"""Paged decode attention against torch's fused attention on contiguous keys and values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.random_weights import random_dense
from benchmarks.kernels.timing import copies_for, time_calls
from multiflora.kernels.ops import AttentionRun
from multiflora.kernels.staging import DirectStaging
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps

BLOCK_SIZE = 16
CASES = ((1, 1024), (1, 8192), (8, 1024), (8, 8192), (32, 1024), (128, 1024))


@dataclass(frozen=True, slots=True)
class AttentionRunSpec:
    """(requests, context) cases with Llama-3.1-8B's heads, or smaller ones."""

    cases: Sequence[tuple[int, int]]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


def measure(spec: AttentionRunSpec) -> Iterator[dict[str, Any]]:
    """Microseconds and GB/s of keys and values read, per case."""
    ops = TritonOps(Accelerator.open(spec.device))
    for requests, context in spec.cases:
        yield _measure(ops, spec, requests, context)


def _measure(ops: TritonOps, spec: AttentionRunSpec, requests: int, context: int) -> dict[str, Any]:
    per_request = -(-context // BLOCK_SIZE)
    shape = (requests * per_request, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
    kv_bytes = 2 * requests * context * spec.num_kv_heads * spec.head_dim * 2
    caches = [_cache(shape, spec) for _ in range(copies_for(kv_bytes, spec.device, most=64))]
    blocks = torch.randperm(shape[0]).view(requests, per_request).tolist()
    runs = [AttentionRun(i, i + 1, context - 1, blocks[i]) for i in range(requests)]
    plan = ops.plan_attention(
        runs,
        num_rows=requests,
        block_size=BLOCK_SIZE,
        window=None,
        max_context=context,
        staging=DirectStaging(spec.device, torch.int32),
    )
    q = random_dense(requests, spec.num_heads, spec.head_dim, dtype=spec.dtype, device=spec.device)
    scale = spec.head_dim**-0.5
    timed = time_calls(
        [lambda k=k, v=v: ops.paged_attention(q, k, v, plan, scale) for k, v in caches],
        spec.device,
    )
    reference = time_calls([lambda c=c: _fused(q, c, requests) for c in caches], spec.device)
    return {
        "requests": requests,
        "context": context,
        "multiflora": {
            "us": timed.microseconds,
            "gb_per_s": round(kv_bytes / timed.seconds / 1e9, 1),
        },
        "torch, contiguous": {
            "us": reference.microseconds,
            "gb_per_s": round(kv_bytes / reference.seconds / 1e9, 1),
            "captured": reference.captured,
        },
    }


def _cache(shape: tuple[int, ...], spec: AttentionRunSpec) -> tuple[Tensor, Tensor]:
    keys, values = (random_dense(*shape, dtype=spec.dtype, device=spec.device) for _ in range(2))
    return keys, values


def _fused(q: Tensor, cache: tuple[Tensor, Tensor], requests: int) -> Tensor:
    keys, values = (part.view(requests, -1, *part.shape[2:]).transpose(1, 2) for part in cache)
    return functional.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)
