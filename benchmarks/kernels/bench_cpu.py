"""The CPU kernels beside torch, bitsandbytes' packed kernel and the machine's own limits, one run.

Writes ``results/cpu-kernels-*.json``. ``--smoke`` runs tiny shapes and measures nothing.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import save
from benchmarks.kernels.cpu_limits import CpuLimits, best_seconds, measure_limits
from benchmarks.kernels.random_weights import random_factors
from multiflora.kernels import cpu_ops, nf4
from multiflora.kernels.cpu_ops.core import load_core
from multiflora.kernels.cpu_ops.nf4 import packed_matmul, packed_nf4
from multiflora.kernels.nf4 import BLOCK_SIZE, Nf4Tensor
from multiflora.kernels.ops import AttentionRun, DenseWeight, Segment
from multiflora.kernels.staging import DirectStaging

CPU = torch.device("cpu")
# (N, K): the MLP of a 0.5B and of an 8B model, a matrix far beyond the caches, and a small one.
SHAPES = ((9_728, 896), (896, 4_864), (4_096, 4_096), (28_672, 4_096))
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ADAPTER_COUNTS = (1, 8, 32)
RANK = 16
# Factors used in turn until the first ones have left every cache.
UNCACHED_BYTES = 128 << 20
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 14, 2, 64, 16
CONTEXTS = ((1, 1_024), (8, 1_024), (1, 8_192), (8, 8_192))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no result")
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    repeats = 1 if arguments.smoke else arguments.repeats
    limits = CpuLimits(1.0, 1.0) if arguments.smoke else measure_limits()
    shapes = ((64, 128),) if arguments.smoke else SHAPES
    contexts = ((2, 40),) if arguments.smoke else CONTEXTS
    record: dict[str, Any] = {
        "kernels": cpu_ops.describe(),
        "threads": torch.get_num_threads(),
        "peak_gflops": round(limits.flops_per_second / 1e9, 1),
        "bfloat16_peak_gflops": limits.bfloat16_flops_per_second
        and round(limits.bfloat16_flops_per_second / 1e9, 1),
        "read_gb_per_s": round(limits.read_bytes_per_second / 1e9, 1),
        "matmul": [row for n, k in shapes for row in _matmul(n, k, limits, repeats)],
        "lora": [row for n, k in shapes[:3] for row in _lora(n, k, limits, repeats)],
        "attention": [_attention(*case, limits, repeats) for case in contexts],
    }
    _print(record)
    if arguments.smoke:
        print("smoke run: nothing measured, nothing saved")
    else:
        print(f"saved {save('cpu-kernels', record)}")


def _matmul(n: int, k: int, limits: CpuLimits, repeats: int) -> list[dict[str, Any]]:
    codes = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8)
    canonical = Nf4Tensor(codes, 0.03 + 0.01 * torch.rand(n * k // BLOCK_SIZE), n, k)
    packed = cpu_ops.pack_nf4(canonical, torch.float32)
    dense = DenseWeight(nf4.dequantize(canonical))
    narrow = DenseWeight(dense.data.bfloat16())
    half = paired = None
    if cpu_ops.has_fast_bfloat16():
        half, paired = packed_nf4(canonical), cpu_ops.pack_nf4(canonical, torch.bfloat16)
    rows = []
    for m in ROW_COUNTS:
        x = torch.randn(m, k)
        peers: dict[str, Callable[[], Tensor] | None] = {
            "multiflora": lambda x=x: cpu_ops.linear(x, packed, None, None),
            "multiflora, bfloat16 matrix": lambda x=x: cpu_ops.linear(x, narrow, None, None),
            "multiflora, bfloat16 activations": paired
            and (lambda x=x, paired=paired: cpu_ops.linear(x.bfloat16(), paired, None, None)),
            "torch float32": lambda x=x: functional.linear(x, dense.data),
            "torch bfloat16": lambda x=x: functional.linear(x.bfloat16(), narrow.data),
            "bitsandbytes packed": half
            and (lambda x=x, half=half: packed_matmul(x.bfloat16(), half)),
        }
        seconds = {name: run and best_seconds(run, repeats) for name, run in peers.items()}
        own = seconds["multiflora"]
        assert own is not None
        rows.append(
            {
                "n": n,
                "k": k,
                "m": m,
                "us": {name: s and round(s * 1e6, 1) for name, s in seconds.items()},
                "ratio": {name: s and round(s / own, 2) for name, s in seconds.items()},
                "gweights_per_s": round(n * k / own / 1e9, 1),
                "of_peak": round(2 * m * n * k / own / limits.flops_per_second, 3),
                "of_bfloat16_peak": _share(
                    2 * m * n * k,
                    seconds["multiflora, bfloat16 activations"],
                    limits.bfloat16_flops_per_second,
                ),
                "of_bandwidth": round(packed.num_bytes / own / limits.read_bytes_per_second, 3),
            }
        )
    return rows


def _share(work: float, seconds: float | None, limit: float | None) -> float | None:
    return round(work / seconds / limit, 3) if seconds and limit else None


def _lora(n: int, k: int, limits: CpuLimits, repeats: int) -> list[dict[str, Any]]:
    """One row each of distinct adapters, whose factors no cache holds, by the time they need."""
    core = load_core()
    assert core is not None
    rows = []
    for count in ADAPTER_COUNTS:
        num_bytes = 4 * count * RANK * (n + k)
        copies = 1 if repeats == 1 else -(-UNCACHED_BYTES // num_bytes)
        tables = cpu_ops.make_lora_tables([[n]] * copies, CPU)
        for slot in range(count):
            factors = {i: random_factors([n], k, RANK, torch.float32, CPU) for i in range(copies)}
            tables.write(slot, factors)
        segments = [Segment(slot, slot + 1, slot) for slot in range(count)]
        plan = cpu_ops.plan_lora(segments, num_rows=count, staging=DirectStaging(CPU))
        versions = [tables.projection(index).versions for index in range(copies)]
        x, y = torch.randn(count, k), torch.zeros(count, n)

        def add_all(
            x: Tensor = x, y: Tensor = y, versions: list[Any] = versions, plan: Any = plan
        ) -> None:
            for each in versions:
                core.add_deltas(y, x, torch.float32, each, plan.records)

        added = best_seconds(add_all, repeats) / copies
        rows.append(
            {
                "n": n,
                "k": k,
                "adapters": count,
                "rank": RANK,
                "added_us": round(added * 1e6, 1),
                "over_byte_time": round(added * limits.read_bytes_per_second / num_bytes, 2),
            }
        )
    return rows


def _attention(requests: int, context: int, limits: CpuLimits, repeats: int) -> dict[str, Any]:
    """One decoded token per request, beside torch's fused attention on contiguous keys."""
    per_request = -(-context // BLOCK)
    shape = (requests * per_request, BLOCK, KV_HEADS, HEAD_DIM)
    keys, values = torch.randn(shape), torch.randn(shape)
    blocks = torch.randperm(shape[0]).view(requests, per_request).tolist()
    runs = [AttentionRun(i, i + 1, context - 1, blocks[i]) for i in range(requests)]
    plan = cpu_ops.plan_attention(
        runs,
        num_rows=requests,
        block_size=BLOCK,
        window=None,
        max_context=context,
        staging=DirectStaging(CPU),
    )
    q = torch.randn(requests, HEADS, HEAD_DIM)
    paged = best_seconds(lambda: cpu_ops.paged_attention(q, keys, values, plan, 0.125), repeats)
    flat_shape = (requests, -1, KV_HEADS, HEAD_DIM)
    k, v = (part.view(flat_shape).transpose(1, 2) for part in (keys, values))
    fused = best_seconds(
        lambda: functional.scaled_dot_product_attention(
            q[:, :, None], k, v, scale=0.125, enable_gqa=True
        ),
        repeats,
    )
    num_bytes = 2 * requests * context * KV_HEADS * HEAD_DIM * 4
    return {
        "requests": requests,
        "context": context,
        "us": round(paged * 1e6, 1),
        "ratio": {"torch, contiguous": round(fused / paged, 2)},
        "of_bandwidth": round(num_bytes / paged / limits.read_bytes_per_second, 3),
    }


def _print(record: dict[str, Any]) -> None:
    print(f"peak {record['peak_gflops']} GFLOP/s, reads {record['read_gb_per_s']} GB/s")
    for row in record["matmul"]:
        print(
            f"  ({row['n']}, {row['k']}) x {row['m']:2}: {row['us']['multiflora']} us, "
            f"{row['of_peak']:.0%} of peak, {row['of_bandwidth']:.0%} of bandwidth; "
            + ", ".join(f"{name} {ratio}x" for name, ratio in row["ratio"].items() if ratio)
        )
    for row in record["lora"]:
        print(
            f"  ({row['n']}, {row['k']}), {row['adapters']} adapters: {row['added_us']} us added, "
            f"{row['over_byte_time']} x the time of their bytes"
        )
    for row in record["attention"]:
        print(
            f"  attention, {row['requests']} x {row['context']}: {row['us']} us, "
            f"{row['of_bandwidth']:.0%} of bandwidth, torch {row['ratio']['torch, contiguous']}x"
        )


if __name__ == "__main__":
    main()
