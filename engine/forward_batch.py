"""From a plan to model inputs: the only place that builds and copies tensors for a step."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from multiflora.adapters.adjustment_table import AdjustmentTable
from multiflora.adapters.batch import Blend, make_segments
from multiflora.kernels.ops import AttentionRun, Ops, RopeTable, Segment, Staging

from .scheduler import ScheduledRequest, StepPlan

# The cache row of a padding row: its key and value are not stored.
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Inputs of one forward pass over T rows."""

    ids: Tensor  # [T]
    positions: Tensor  # [T]
    cache_rows: Tensor  # [T], where each row's key and value go
    sample_rows: Tensor  # [B], rows whose logits are wanted, item by item
    rope: RopeTable
    lora: Any | None  # the backend's plan; None in a step without adapters
    attention: Mapping[int | None, Any]  # by window, the backend's plan
    # Only in a step with versions that change more than deltas can say; it is never captured.
    adjusted: tuple[Segment, ...] = ()
    adjusted_samples: tuple[Segment, ...] = ()  # of the sample rows
    head_lora: Any | None = None  # the backend's plan over the sample rows

    @property
    def graph_key(self) -> Hashable:
        """Which captured step of its number of rows this batch fits."""
        lora = None if self.lora is None else self.lora.graph_key
        return lora, tuple(plan.graph_key for plan in self.attention.values())


class BatchBuilder:
    """Holds what every batch needs: rotary tables, the KV cache's shape, the model's windows.

    ``adjustments`` tell which versions need more than the segmented op, and ``head`` is the index
    of the head among the projections.
    """

    def __init__(
        self,
        ops: Ops,
        *,
        rope: RopeTable,
        block_size: int,
        pages_per_block: int,
        windows: Sequence[int | None],
        slot_of: Callable[[str], int],
        adjustments: AdjustmentTable | None = None,
        head: int = -1,
    ) -> None:
        self._ops = ops
        self._rope = rope
        self._block_size = block_size
        self._pages_per_block = pages_per_block
        self._windows = tuple(dict.fromkeys(windows))
        self._slot_of = slot_of
        self._adjustments = adjustments or AdjustmentTable()
        self._head = head

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    def build(
        self,
        plan: StepPlan,
        *,
        staging: Staging,
        num_rows: int | None = None,
        segments: Sequence[Segment] | None = None,
    ) -> ForwardBatch:
        """Inputs for ``plan``, padded to ``num_rows`` rows that read and write nothing.

        ``segments`` stand in for those of the plan's items, to prepare kernels for what may come.
        """
        items = plan.items
        total = sum(item.count for item in items)
        num_rows = num_rows or total
        padding = num_rows - total
        positions = [p for item in items for p in range(item.start, item.start + item.count)]
        ids = [token for item in items for token in _tokens(item)]
        samples = _sample_rows(items)
        segments = self._segments(items) if segments is None else segments
        return ForwardBatch(
            ids=staging.place(ids + [0] * padding),
            positions=staging.place(positions + [0] * padding),
            cache_rows=staging.place(self._cache_rows(items) + [NOWHERE] * padding),
            sample_rows=staging.place(samples + [0] * padding),
            rope=self._rope,
            lora=self._plan_lora(segments, num_rows, staging),
            attention=self._plan_attention(items, num_rows, staging),
            **self._plan_adjustments(items, segments, staging),
        )

    def is_adjusted(self, plan: StepPlan) -> bool:
        """Whether the step has rows of a version that needs more than the segmented op."""
        return not self._adjustments.is_empty and any(
            self._adjustments.has(slot) for item in plan.items for slot, _ in self._blend(item)
        )

    def _plan_adjustments(
        self, items: Sequence[ScheduledRequest], segments: Sequence[Segment], staging: Staging
    ) -> dict[str, Any]:
        adjusted = self._adjusted(segments)
        if not adjusted:
            return {}
        counts = [item.num_logits for item in items]
        pairs = [(n, self._blend(item)) for n, item in zip(counts, items, strict=True) if n]
        samples = make_segments(pairs)
        has_head = any(self._adjustments.touches(s.slot, self._head) for s in samples)
        return {
            "adjusted": adjusted,
            "adjusted_samples": self._adjusted(samples),
            "head_lora": self._plan_lora(samples, sum(counts), staging) if has_head else None,
        }

    def _adjusted(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        if self._adjustments.is_empty:
            return ()
        return tuple(s for s in segments if self._adjustments.has(s.slot))

    def _segments(self, items: Sequence[ScheduledRequest]) -> tuple[Segment, ...]:
        return make_segments((item.count, self._blend(item)) for item in items)

    def _plan_lora(
        self, segments: Sequence[Segment], num_rows: int, staging: Staging
    ) -> Any | None:
        if not segments:
            return None
        return self._ops.plan_lora(segments, num_rows=num_rows, staging=staging)

    def _plan_attention(
        self, items: Sequence[ScheduledRequest], num_rows: int, staging: Staging
    ) -> dict[int | None, Any]:
        runs = self._attention_runs(items)
        return {
            window: self._ops.plan_attention(
                runs,
                num_rows=num_rows,
                block_size=self._block_size,
                window=window,
                max_context=self._rope.cos.shape[0],
                staging=staging,
            )
            for window in self._windows
        }

    def _blend(self, item: ScheduledRequest) -> Blend:
        shares = item.request.request.adapters
        return tuple((self._slot_of(share.digest), share.weight) for share in shares)

    def _cache_rows(self, items: Sequence[ScheduledRequest]) -> list[int]:
        size = self._block_size
        rows: list[int] = []
        for item in items:
            pages = self._pages(item)
            positions = range(item.start, item.start + item.count)
            rows += [pages[p // size] * size + p % size for p in positions]
        return rows

    def _attention_runs(self, items: Sequence[ScheduledRequest]) -> list[AttentionRun]:
        runs = []
        row = 0
        for item in items:
            runs.append(AttentionRun(row, row + item.count, item.start, self._pages(item)))
            row += item.count
        return runs

    def _pages(self, item: ScheduledRequest) -> list[int]:
        return item.request.first_pages(self._pages_per_block)


def _tokens(item: ScheduledRequest) -> list[int]:
    return item.request.tokens[item.start : item.start + item.count]


def _sample_rows(items: Sequence[ScheduledRequest]) -> list[int]:
    rows: list[int] = []
    start = 0
    for item in items:
        rows += [start + position - item.start for position in item.scored]
        start += item.count
        if item.samples:
            rows.append(start - 1)
    return rows
