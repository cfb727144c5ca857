"""From a plan to model inputs: the only place that builds and copies tensors for a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiflora.adapters.batch import Blend, make_segments
from multiflora.kernels.ops import AttentionRun, Ops, Segment

from .scheduler import ScheduledRequest, StepPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Inputs of one forward pass over T rows."""

    ids: Tensor  # int64 [T]
    cos: Tensor  # float32 [T, D / 2]
    sin: Tensor  # float32 [T, D / 2]
    cache_rows: Tensor  # int64 [T], where each row's key and value go
    segments: tuple[Segment, ...]
    attention: Mapping[int | None, Any]  # by window, the backend's plan
    sample_rows: Tensor  # int64 [B], rows whose logits are wanted


class BatchBuilder:
    """Holds what every batch needs: the rotary tables, the block size, the model's windows."""

    def __init__(
        self,
        ops: Ops,
        *,
        rope: tuple[Tensor, Tensor],
        block_size: int,
        windows: Sequence[int | None],
        slot_of: Callable[[str], int],
        device: torch.device,
    ) -> None:
        self._ops = ops
        self._cos, self._sin = (table.to(device) for table in rope)
        self._block_size = block_size
        self._windows = tuple(dict.fromkeys(windows))
        self._slot_of = slot_of
        self._device = device

    def build(self, plan: StepPlan) -> ForwardBatch:
        positions = self._int64([p for i in plan.items for p in range(i.start, i.start + i.count)])
        runs = _attention_runs(plan.items)
        return ForwardBatch(
            ids=self._int64([token for item in plan.items for token in _tokens(item)]),
            cos=self._cos[positions],
            sin=self._sin[positions],
            cache_rows=self._int64(self._cache_rows(plan.items)),
            segments=make_segments((item.count, self._blend(item)) for item in plan.items),
            attention={window: self._plan_attention(runs, window) for window in self._windows},
            sample_rows=self._int64(_sample_rows(plan.items)),
        )

    def _int64(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device)

    def _blend(self, item: ScheduledRequest) -> Blend:
        shares = item.request.request.adapters
        return tuple((self._slot_of(share.digest), share.weight) for share in shares)

    def _cache_rows(self, items: Sequence[ScheduledRequest]) -> list[int]:
        size = self._block_size
        return [
            item.request.blocks[position // size] * size + position % size
            for item in items
            for position in range(item.start, item.start + item.count)
        ]

    def _plan_attention(self, runs: list[AttentionRun], window: int | None) -> Any:
        return self._ops.plan_attention(
            runs, block_size=self._block_size, window=window, device=self._device
        )


def _tokens(item: ScheduledRequest) -> list[int]:
    return item.request.tokens[item.start : item.start + item.count]


def _attention_runs(items: Sequence[ScheduledRequest]) -> list[AttentionRun]:
    runs = []
    row = 0
    for item in items:
        runs.append(AttentionRun(row, row + item.count, item.start, item.request.blocks))
        row += item.count
    return runs


def _sample_rows(items: Sequence[ScheduledRequest]) -> list[int]:
    rows = []
    stop = 0
    for item in items:
        stop += item.count
        if item.samples:
            rows.append(stop - 1)
    return rows
