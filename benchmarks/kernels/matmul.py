"""One projection without adapters: ours, bitsandbytes, dense bf16, decode and multiply."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.random_weights import random_dense, random_nf4
from benchmarks.kernels.timing import copies_for, time_calls
from multiflora.kernels.nf4 import Nf4Tensor, dequantize
from multiflora.kernels.ops import Nf4Weight
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps

LLAMA_8B_SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
QWEN_7B_SHAPES = ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944))
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# The portable look-up shows what the byte permutes bring; two sizes say it.
_PORTABLE_ROWS = (1, 16)
Matmul = Callable[[Tensor], object]


@dataclass(frozen=True, slots=True)
class MatmulRun:
    """What to measure, and where."""

    shapes: Sequence[tuple[int, int]]
    row_counts: Sequence[int]
    dtype: torch.dtype
    device: torch.device


def measure(run: MatmulRun) -> Iterator[dict[str, Any]]:
    """One record per shape and number of rows: microseconds and GB/s of packed bytes by kernel."""
    for out, into in run.shapes:
        packed_bytes = out * into // 2 + out * into // 64 * 2
        kernels = _kernels(run, out, into, copies_for(packed_bytes, run.device))
        for rows in run.row_counts:
            x = random_dense(rows, into, dtype=run.dtype, device=run.device)
            record: dict[str, Any] = {"n": out, "k": into, "m": rows}
            for name, matmuls in kernels.items():
                if name == "portable look-up" and rows not in _PORTABLE_ROWS:
                    continue
                timed = time_calls([partial(matmul, x) for matmul in matmuls], run.device)
                read = 2 * out * into if name == "dense" else packed_bytes
                record[name] = {
                    "us": timed.microseconds,
                    "gb_per_s": round(read / timed.seconds / 1e9, 1),
                    "captured": timed.captured,
                }
            yield record


def _kernels(run: MatmulRun, out: int, into: int, copies: int) -> dict[str, list[Matmul]]:
    weights = [random_nf4(out, into, run.dtype, run.device) for _ in range(copies)]
    ops = TritonOps(Accelerator.open(run.device))
    invariant = TritonOps(Accelerator.open(run.device), batch_invariant=True)
    portable = TritonOps(Accelerator.open(run.device, permute=False))
    kernels: dict[str, list[Matmul]] = {
        "multiflora": _linears(ops, weights),
        "batch-invariant": _linears(invariant, weights),
        "portable look-up": _linears(portable, weights),
        "decode + dense, in slices": _decoding(ops, weights, None),
        "decode + dense, whole": _decoding(ops, weights, 2 * out * into),
        "dense": _dense(run, out, into),
    }
    bitsandbytes = _bitsandbytes(run, out, into, copies)
    return kernels | ({"bitsandbytes": bitsandbytes} if bitsandbytes else {})


def _linears(ops: TritonOps, weights: Sequence[Nf4Weight]) -> list[Matmul]:
    return [lambda x, w=w: ops.linear(x, w, None, None) for w in weights]


def _decoding(
    ops: TritonOps, weights: Sequence[Nf4Weight], slice_bytes: int | None
) -> list[Matmul]:
    decode = ops.linear.decode_and_multiply
    return [lambda x, w=w: decode(x, w, slice_bytes=slice_bytes) for w in weights]


def _dense(run: MatmulRun, out: int, into: int) -> list[Matmul]:
    copies = copies_for(2 * out * into, run.device)
    weights = [
        random_dense(out, into, dtype=run.dtype, device=run.device, scale=0.02)
        for _ in range(copies)
    ]
    return [lambda x, w=w: functional.linear(x, w) for w in weights]


def _bitsandbytes(run: MatmulRun, out: int, into: int, copies: int) -> list[Matmul] | None:
    try:
        bnb: Any = importlib.import_module("bitsandbytes")
    except ImportError:
        print("  bitsandbytes is not installed: its column is missing", file=sys.stderr)
        return None
    found: list[Matmul] = []
    for _ in range(copies):
        dense = random_dense(out, into, dtype=run.dtype, device=run.device, scale=0.02)
        codes, state = bnb.functional.quantize_4bit(
            dense, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        found.append(lambda x, c=codes, s=state: bnb.matmul_4bit(x, c.t(), quant_state=s))
    return found


def check(run: MatmulRun) -> dict[str, float]:
    """Relative error against float64 of the decoded weight, and run-to-run equality of bits."""
    out, into = 384, 1024
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (out * into // 2,), dtype=torch.uint8, generator=generator)
    absmax = 0.03 + 0.01 * torch.rand(out * into // 64, generator=generator)
    canonical = Nf4Tensor(codes, absmax, out, into)
    ops = TritonOps(Accelerator.open(run.device))
    packed = ops.pack_nf4(canonical, run.dtype)
    moved = {name: tensor.to(run.device) for name, tensor in packed.tensors.items()}
    weight = replace(packed, tensors=moved)
    dense = dequantize(canonical).to(run.device, torch.float64)
    errors = {}
    for rows in run.row_counts:
        x = random_dense(rows, into, dtype=run.dtype, device=run.device)
        found = ops.linear(x, weight, None, None)
        assert torch.equal(found, ops.linear(x, weight, None, None)), f"{rows} rows: bits differ"
        wanted = x.double() @ dense.T
        errors[str(rows)] = float((found.double() - wanted).norm() / wanted.norm())
    assert max(errors.values()) < 5e-3, errors
    return errors


def probe_invariance(run: MatmulRun) -> dict[str, bool]:
    """Whether a row has the same bits at one row and among more, by mode and number of rows."""
    weight = random_nf4(4096, 4096, run.dtype, run.device)
    x = random_dense(max(run.row_counts), 4096, dtype=run.dtype, device=run.device)
    found = {}
    for name, batch_invariant in (("default", False), ("batch-invariant", True)):
        ops = TritonOps(Accelerator.open(run.device), batch_invariant=batch_invariant)
        alone = ops.linear(x[:1], weight, None, None)
        for rows in run.row_counts[1:]:
            among = ops.linear(x[:rows], weight, None, None)[:1]
            found[f"{name}, {rows} rows"] = torch.equal(alone, among)
    return found
