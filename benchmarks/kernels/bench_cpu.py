"""The CPU kernels beside torch, bitsandbytes' packed kernel and the machine's own limits, one run.

Activations are what a server has on the machine: bfloat16 where it multiplies them, else float32;
shares of the peak are of that type's. Writes ``results/cpu-kernels-*.json``. ``--smoke`` runs tiny
shapes and measures nothing.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Served:
    """What a server computes with here, and what the machine could do at most."""

    dtype: torch.dtype
    flops_per_second: float
    read_bytes_per_second: float
    repeats: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no result")
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    repeats = 1 if arguments.smoke else arguments.repeats
    limits = CpuLimits(1.0, 1.0) if arguments.smoke else measure_limits()
    shapes = ((64, 128),) if arguments.smoke else SHAPES
    contexts = ((2, 40),) if arguments.smoke else CONTEXTS
    dtype = torch.bfloat16 if cpu_ops.has_fast_bfloat16() else torch.float32
    peak = limits.bfloat16_flops_per_second if dtype == torch.bfloat16 else None
    served = Served(dtype, peak or limits.flops_per_second, limits.read_bytes_per_second, repeats)
    record: dict[str, Any] = {
        "kernels": cpu_ops.describe(),
        "activations": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "peak_gflops": round(limits.flops_per_second / 1e9, 1),
        "bfloat16_peak_gflops": limits.bfloat16_flops_per_second
        and round(limits.bfloat16_flops_per_second / 1e9, 1),
        "read_gb_per_s": round(limits.read_bytes_per_second / 1e9, 1),
        "matmul": [row for n, k in shapes for row in _matmul(n, k, served)],
        "lora": [row for n, k in shapes[:3] for row in _lora(n, k, served)],
        "attention": [_attention(*case, served) for case in contexts],
    }
    record["worst"] = _worst(record)
    _print(record)
    if arguments.smoke:
        print("smoke run: nothing measured, nothing saved")
    else:
        print(f"saved {save('cpu-kernels', record)}")


def _matmul(n: int, k: int, served: Served) -> list[dict[str, Any]]:
    codes = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8)
    canonical = Nf4Tensor(codes, 0.03 + 0.01 * torch.rand(n * k // BLOCK_SIZE), n, k)
    packed = cpu_ops.pack_nf4(canonical, served.dtype)
    dense = nf4.dequantize(canonical)
    narrow = dense.bfloat16()
    others = _others(canonical, served)
    rows = []
    for m in ROW_COUNTS:
        wide = torch.randn(m, k)
        half, x = wide.bfloat16(), wide.to(served.dtype)
        runs: dict[str, Callable[[], Tensor] | None] = {
            "multiflora": lambda x=x: cpu_ops.linear(x, packed, None, None),
            "multiflora, bfloat16 matrix": lambda x=x: cpu_ops.linear(
                x, DenseWeight(narrow), None, None
            ),
            "torch float32": lambda x=wide: functional.linear(x, dense),
            "torch bfloat16": lambda x=half: functional.linear(x, narrow),
        }
        for name, multiply in others.items():
            values = wide if "float32" in name else half
            runs[name] = multiply and (lambda x=values, multiply=multiply: multiply(x))
        seconds = {name: run and best_seconds(run, served.repeats) for name, run in runs.items()}
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
                "of_peak": round(2 * m * n * k / own / served.flops_per_second, 3),
                "of_bandwidth": round(packed.num_bytes / own / served.read_bytes_per_second, 3),
            }
        )
    return rows


def _worst(record: dict[str, Any]) -> dict[str, float | None]:
    """The figures that aims are held to: those of matrices in the caches, and of the one beyond."""
    cached = [row for row in record["matmul"] if (row["n"], row["k"]) != SHAPES[-1]]
    beyond = [row for row in record["matmul"] if row not in cached and row["m"] == 1]
    over_peer = [row["ratio"]["bitsandbytes packed"] for row in cached]
    return {
        "cached_over_bitsandbytes": min(filter(None, over_peer), default=None),
        "of_peak_from_8_rows": min(row["of_peak"] for row in cached if row["m"] >= 8),
        "of_bandwidth_of_one_row": min((row["of_bandwidth"] for row in beyond), default=None),
        "lora_over_byte_time": max(
            row["over_byte_time"] for row in record["lora"] if row["adapters"] == 8
        ),
    }


def _others(canonical: Nf4Tensor, served: Served) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """What only a processor with bfloat16 units has: a second kernel of ours, and a peer."""
    if served.dtype == torch.float32:
        return {"multiflora, float32 activations": None, "bitsandbytes packed": None}
    wide, half = cpu_ops.pack_nf4(canonical, torch.float32), packed_nf4(canonical)
    return {
        "multiflora, float32 activations": lambda x: cpu_ops.linear(x, wide, None, None),
        "bitsandbytes packed": lambda x: packed_matmul(x, half),
    }


def _lora(n: int, k: int, served: Served) -> list[dict[str, Any]]:
    """One row each of distinct adapters, whose factors no cache holds, by the time they need."""
    core = load_core()
    assert core is not None
    rows = []
    for count in ADAPTER_COUNTS:
        num_bytes = served.dtype.itemsize * count * RANK * (n + k)
        copies = 1 if served.repeats == 1 else -(-UNCACHED_BYTES // num_bytes)
        tables = cpu_ops.make_lora_tables([[n]] * copies, CPU)
        for slot in range(count):
            factors = {i: random_factors([n], k, RANK, served.dtype, CPU) for i in range(copies)}
            tables.write(slot, factors)
        segments = [Segment(slot, slot + 1, slot) for slot in range(count)]
        plan = cpu_ops.plan_lora(segments, num_rows=count, staging=DirectStaging(CPU))
        versions = [tables.projection(index).versions for index in range(copies)]
        x, y = torch.randn(count, k).to(served.dtype), torch.zeros(count, n)

        def add_all(
            x: Tensor = x, y: Tensor = y, versions: list[Any] = versions, plan: Any = plan
        ) -> None:
            for each in versions:
                core.add_deltas(y, x, served.dtype, each, plan.records)

        added = best_seconds(add_all, served.repeats) / copies
        rows.append(
            {
                "n": n,
                "k": k,
                "adapters": count,
                "rank": RANK,
                "added_us": round(added * 1e6, 1),
                "over_byte_time": round(added * served.read_bytes_per_second / num_bytes, 2),
            }
        )
    return rows


def _attention(requests: int, context: int, served: Served) -> dict[str, Any]:
    """One decoded token per request, beside torch's fused attention on contiguous keys."""
    per_request = -(-context // BLOCK)
    shape = (requests * per_request, BLOCK, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape).to(served.dtype) for _ in range(2))
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
    q = torch.randn(requests, HEADS, HEAD_DIM).to(served.dtype)
    paged = best_seconds(
        lambda: cpu_ops.paged_attention(q, keys, values, plan, 0.125), served.repeats
    )
    flat_shape = (requests, -1, KV_HEADS, HEAD_DIM)
    k, v = (part.view(flat_shape).transpose(1, 2) for part in (keys, values))
    fused = best_seconds(
        lambda: functional.scaled_dot_product_attention(
            q[:, :, None], k, v, scale=0.125, enable_gqa=True
        ),
        served.repeats,
    )
    num_bytes = 2 * requests * context * KV_HEADS * HEAD_DIM * served.dtype.itemsize
    return {
        "requests": requests,
        "context": context,
        "us": round(paged * 1e6, 1),
        "ratio": {"torch, contiguous": round(fused / paged, 2)},
        "of_bandwidth": round(num_bytes / paged / served.read_bytes_per_second, 3),
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
