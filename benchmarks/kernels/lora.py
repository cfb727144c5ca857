"""What adapters add to a projection: fused, separate, grouped, and one by one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.random_weights import random_dense, random_factors, random_nf4
from benchmarks.kernels.timing import copies_for, time_calls
from multiflora.kernels.ops import LoraFactors, LoraInput, Nf4Weight, Segment
from multiflora.kernels.staging import DirectStaging
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps

# qkv and gate_up of Llama-3.1-8B: the widths of their slices, and K.
LLAMA_8B_PROJECTIONS = (((4096, 1024, 1024), 4096), ((14336, 14336), 4096))
ADAPTER_COUNTS = (1, 4, 8, 32)
RANKS = (8, 16, 64)
ROW_COUNTS = (8, 32, 128)
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class LoraRun:
    """What to measure, and where."""

    projections: Sequence[tuple[tuple[int, ...], int]]
    adapter_counts: Sequence[int]
    ranks: Sequence[int]
    row_counts: Sequence[int]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Case:
    """One projection with its rows divided evenly among distinct adapters."""

    run: LoraRun
    widths: tuple[int, ...]
    into: int
    rows: int
    rank: int
    count: int

    def segments(self) -> list[Segment]:
        bounds = [index * self.rows // self.count for index in range(self.count + 1)]
        return [Segment(bounds[i], bounds[i + 1], i) for i in range(self.count)]

    def adapters(self) -> list[LoraFactors]:
        return [
            random_factors(self.widths, self.into, self.rank, self.run.dtype, self.run.device)
            for _ in range(self.count)
        ]


def measure(run: LoraRun) -> Iterator[dict[str, Any]]:
    """Microseconds of the base alone, and what every way of adding adapters adds to it."""
    ops = TritonOps(Accelerator.open(run.device))
    for widths, into in run.projections:
        out = sum(widths)
        copies = copies_for(out * into // 2, run.device)
        weights = [random_nf4(out, into, run.dtype, run.device) for _ in range(copies)]
        for rows in run.row_counts:
            for rank in run.ranks:
                for count in (count for count in run.adapter_counts if count <= rows):
                    yield _measure(ops, weights, _Case(run, widths, into, rows, rank, count))


def _measure(ops: TritonOps, weights: Sequence[Nf4Weight], case: _Case) -> dict[str, Any]:
    run = case.run
    x = random_dense(case.rows, case.into, dtype=run.dtype, device=run.device)
    copies = [case.adapters() for _ in weights]
    base = time_calls([lambda w=w: ops.linear(x, w, None, None) for w in weights], run.device)
    adapter_bytes = sum(
        (f.a.numel() + sum(p.b.numel() for p in f.parts)) * f.a.element_size() for f in copies[0]
    )
    record: dict[str, Any] = {
        "n": sum(case.widths),
        "k": case.into,
        "m": case.rows,
        "rank": case.rank,
        "adapters": case.count,
        "adapter_bytes": adapter_bytes,
        "base_us": base.microseconds,
    }
    for name, calls in _ways(ops, weights, copies, x, case).items():
        # Below Hopper a grouped matmul waits for the device at every call.
        capturable = name != "grouped_mm" or torch.cuda.get_device_capability() >= (9, 0)
        timed = time_calls(calls, run.device, capturable=capturable)
        record[name] = {
            "added_us": round((timed.seconds - base.seconds) * 1e6, 2),
            "captured": timed.captured,
        }
    return record


def _ways(
    ops: TritonOps,
    weights: Sequence[Nf4Weight],
    copies: Sequence[list[LoraFactors]],
    x: Tensor,
    case: _Case,
) -> dict[str, list[Call]]:
    ways = {
        "fused": _ours(ops, weights, copies, x, case, in_epilogue=True),
        "separate": _ours(ops, weights, copies, x, case, in_epilogue=False),
        "loop": [
            lambda w=w, a=a: _loop(ops.linear(x, w, None, None), x, a, case.segments())
            for w, a in zip(weights, copies, strict=True)
        ],
    }
    if hasattr(torch, "_grouped_mm") and case.run.device.type == "cuda":
        ways["grouped_mm"] = _grouped(ops, weights, copies, x, case)
    return ways


def _ours(
    ops: TritonOps,
    weights: Sequence[Nf4Weight],
    copies: Sequence[list[LoraFactors]],
    x: Tensor,
    case: _Case,
    *,
    in_epilogue: bool,
) -> list[Call]:
    plan = replace(
        ops.plan_lora(
            case.segments(), num_rows=case.rows, staging=DirectStaging(case.run.device, torch.int32)
        ),
        in_epilogue=in_epilogue,
    )
    inputs = []
    for adapters in copies:
        tables = ops.make_lora_tables([case.widths], case.run.device)
        for slot, factors in enumerate(adapters):
            tables.write(slot, {0: factors})
        inputs.append(LoraInput(tables.projection(0), plan))
    return [
        lambda w=w, i=i: ops.linear(x, w, None, i) for w, i in zip(weights, inputs, strict=True)
    ]


def _loop(
    y: Tensor, x: Tensor, adapters: Sequence[LoraFactors], segments: Sequence[Segment]
) -> Tensor:
    """One adapter after the other, as PEFT does it, on slices instead of masks."""
    for segment, factors in zip(segments, adapters, strict=True):
        rows = slice(segment.start, segment.stop)
        for part in factors.parts:
            rank, width = part.b.shape
            a = factors.a[part.first_rank : part.first_rank + rank]
            y[rows, part.first_column : part.first_column + width] += (x[rows] @ a.T) @ part.b
    return y


def _grouped(
    ops: TritonOps,
    weights: Sequence[Nf4Weight],
    copies: Sequence[list[LoraFactors]],
    x: Tensor,
    case: _Case,
) -> list[Call]:
    """Two grouped matmuls per slice over stacked factors, which is all that it can read."""
    stops = torch.tensor(
        [segment.stop for segment in case.segments()], dtype=torch.int32, device=x.device
    )

    grouped: Any = getattr(torch, "_grouped_mm")  # noqa: B009  # not public, and not typed

    def call(weight: Nf4Weight, stacked: list[tuple[slice, Tensor, Tensor]]) -> Tensor:
        y = ops.linear(x, weight, None, None)
        for columns, a, b in stacked:
            y[:, columns] += grouped(grouped(x, a, offs=stops), b, offs=stops)
        return y

    return [lambda w=w, s=s: call(w, s) for w, s in zip(weights, map(_stack, copies), strict=True)]


def _stack(adapters: Sequence[LoraFactors]) -> list[tuple[slice, Tensor, Tensor]]:
    """Per slice: its columns, A transposed [adapters, K, R] and B [adapters, R, N]."""
    stacked = []
    for place, part in enumerate(adapters[0].parts):
        rank, width = part.b.shape
        a = torch.stack([f.a[place * rank : (place + 1) * rank] for f in adapters])
        b = torch.stack([f.parts[place].b for f in adapters])
        columns = slice(part.first_column, part.first_column + width)
        stacked.append((columns, a.transpose(1, 2), b.transpose(1, 2).contiguous().transpose(1, 2)))
    return stacked
