"""A few seconds at start-up that prove the kernels on this very device, driver and compiler.

The byte-permute look-up relies on how Triton groups elements for inline assembly, so its result is
compared bit for bit with the portable table. Everything else is compared with float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from .. import nf4, torch_ops
from ..ops import (
    AttentionRun,
    LoraFactors,
    LoraInput,
    LoraPart,
    Nf4Weight,
    Ops,
    Segment,
)
from ..quantize import quantize
from ..staging import DirectStaging
from .accelerator import Accelerator
from .backend import TritonOps

_ROWS, _OUT, _IN = 19, 192, 320
_BLOCK, _HEADS, _KV_HEADS, _HEAD_DIM, _KEYS = 16, 4, 2, 64, 300
# bfloat16 rounds a result to eight bits; a wrong index is wrong by far more than this.
_TOLERANCE = 1e-2


class SelfCheckFailed(RuntimeError):
    """A kernel did not compile, or computes something else than its definition, on this device."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check; ``error`` is a relative norm, zero where bits must be equal."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def check(ops: TritonOps, dtype: torch.dtype) -> list[CheckResult]:
    """Run all checks. Raises ``SelfCheckFailed`` naming the first that does not hold."""
    results = []
    for name, run in _CHECKS:
        try:
            result = CheckResult(name, *run(ops, dtype))
        except Exception as error:  # whatever compiler and driver throw
            raise SelfCheckFailed(f"kernel self-check {name!r} did not run: {error}") from error
        # Written so that NaN fails.
        if not result.passed:
            raise SelfCheckFailed(
                f"kernel self-check {name!r} differs by {result.error:.1e} "
                f"(at most {result.tolerance:.0e}) on {ops.describe()}"
            )
        results.append(result)
    return results


def _look_up(ops: TritonOps, dtype: torch.dtype) -> tuple[float, float]:
    """The permuting and the portable matmul, bit for bit."""
    x, weight, _ = _projection(ops, dtype)
    portable = TritonOps(
        Accelerator.open(x.device, permute=False), batch_invariant=ops.BATCH_INVARIANT
    )
    found, wanted = (o.linear(x, weight, None, None) for o in (ops, portable))
    return (0.0 if torch.equal(found, wanted) else _difference(found, wanted.double())), 0.0


def _nf4_matmul(ops: TritonOps, dtype: torch.dtype) -> tuple[float, float]:
    x, weight, dense = _projection(ops, dtype)
    found = ops.linear(x, weight, None, None)
    return _difference(found, x.double() @ dense.T), _TOLERANCE


def _adapters(ops: TritonOps, dtype: torch.dtype) -> tuple[float, float]:
    """Two versions of different rank, a blend, and rows of the base."""
    x, weight, dense = _projection(ops, dtype)
    versions = [_version(rank, seed, dtype, x.device) for seed, rank in enumerate((16, 3))]
    segments = [Segment(0, 5, 0), Segment(5, 17, 0, 0.5), Segment(5, 17, 1, -1.0)]
    tables = ops.make_lora_tables([[_OUT]], x.device)
    for slot, factors in enumerate(versions):
        tables.write(slot, {0: factors})
    plan = ops.plan_lora(segments, num_rows=_ROWS, staging=DirectStaging(x.device, torch.int32))
    found = ops.linear(x, weight, None, LoraInput(tables.projection(0), plan))
    wanted = x.double() @ dense.T
    for segment in segments:
        rows, factors = slice(segment.start, segment.stop), versions[segment.slot]
        delta = x[rows].double() @ factors.a.double().T @ factors.parts[0].b.double()
        wanted[rows] += segment.weight * factors.parts[0].scale * delta
    return _difference(found, wanted), _TOLERANCE


def _attention(ops: TritonOps, dtype: torch.dtype) -> tuple[float, float]:
    """One row that decodes and several that prefill, over shuffled pages."""
    device = ops.accelerator.device
    num_blocks = -(-_KEYS // _BLOCK)
    blocks = torch.randperm(num_blocks, generator=_generator(1)).tolist()
    shape = (num_blocks, _BLOCK, _KV_HEADS, _HEAD_DIM)
    keys, values = (_random(shape, seed, dtype, device) for seed in (2, 3))
    runs = [AttentionRun(0, 1, _KEYS - 1, blocks), AttentionRun(1, 20, 40, blocks)]
    q = _random((20, _HEADS, _HEAD_DIM), 4, dtype, device)
    backends = cast(tuple[Ops, ...], (ops, torch_ops))
    found, wanted = (
        backend.paged_attention(
            q,
            keys,
            values,
            backend.plan_attention(
                runs,
                num_rows=20,
                block_size=_BLOCK,
                window=None,
                max_context=_KEYS,
                staging=DirectStaging(device, torch.int32),
            ),
            _HEAD_DIM**-0.5,
        )
        for backend in backends
    )
    return _difference(found, wanted.double()), _TOLERANCE


_CHECKS: Sequence[tuple[str, Callable[[TritonOps, torch.dtype], tuple[float, float]]]] = (
    ("look-up", _look_up),
    ("nf4 matmul", _nf4_matmul),
    ("adapters", _adapters),
    ("attention", _attention),
)


def _projection(ops: TritonOps, dtype: torch.dtype) -> tuple[Tensor, Nf4Weight, Tensor]:
    """x, a packed weight, and its exact value float64 [N, K]."""
    device = ops.accelerator.device
    canonical = quantize(_random((_OUT, _IN), 5, torch.float32, torch.device("cpu")))
    packed = ops.pack_nf4(canonical, dtype)
    moved = {name: tensor.to(device) for name, tensor in packed.tensors.items()}
    weight = replace(packed, tensors=moved)
    dense = nf4.dequantize(canonical).to(device, torch.float64)
    return _random((_ROWS, _IN), 6, dtype, device), weight, dense


def _version(rank: int, seed: int, dtype: torch.dtype, device: torch.device) -> LoraFactors:
    a = _random((rank, _IN), 10 + seed, dtype, device)
    return LoraFactors(a, (LoraPart(_random((rank, _OUT), 20 + seed, dtype, device), 0, 0, 0.2),))


def _random(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=_generator(seed)).to(device, dtype)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
