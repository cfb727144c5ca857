"""Decode steps from CUDA graphs: one launch for a step instead of hundreds.

A graph is captured for a number of rows and for what the backend's plans say of a step (with or
without adapters, which kernels); smaller steps are padded with rows that read and write nothing. A
step's integers arrive in a static staging, adapters are read through tables, so that neither new
requests nor swaps need a new capture. A step with a version that changes more than deltas can say
(DoRA, biases, the head, ...) runs uncaptured.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from multiflora.kernels.ops import LoraTables, Segment
from multiflora.kernels.staging import PackedStaging, StagingOverflow

from .forward_batch import BatchBuilder, ForwardBatch
from .scheduler import StepPlan

logger = logging.getLogger(__name__)

# Rows of the captured steps: every one costs start-up time and memory, every gap wasted rows.
_ROW_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Forward = Callable[[ForwardBatch], Tensor]
# Rows of other steps to compile kernels for: one per tile, and one beyond the fused matmul.
_UNCAPTURED_ROWS = (16, 32, 64, 128, 192, 256, 320)


class CapturedStep(Protocol):
    """A step that can be run again on new contents of the same tensors."""

    def replay(self) -> Tensor:
        """The step's result, valid until the next replay of any step."""
        ...


class Capture(Protocol):
    """Records calls without arguments."""

    def __call__(self, step: Callable[[], Tensor]) -> CapturedStep: ...

    def reset(self) -> None:
        """All captured steps are gone."""
        ...


class StepGraphs:
    """Captured decode steps of one engine; ``forward`` computes logits [rows, V] of a batch."""

    def __init__(
        self,
        builder: BatchBuilder,
        forward: Forward,
        tables: LoraTables,
        *,
        max_rows: int,
        max_blocks: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._builder = builder
        self._forward = forward
        self._tables = tables
        self._generation = tables.generation
        self._capture = capture
        self._row_counts = row_counts(max_rows)
        self._stagings = {
            rows: PackedStaging(
                device,
                static_capacity(rows, max_blocks, windows=builder.num_windows),
                is_static=True,
            )
            for rows in self._row_counts
        }
        self._steps: dict[tuple[int, Hashable], CapturedStep] = {}
        self._is_broken = False
        self.num_replays = 0
        self.num_padding_rows = 0

    @property
    def num_captured(self) -> int:
        return len(self._steps)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture every size and kind of step; the largest first, as it sizes scratch memory."""
        for rows in reversed(self._row_counts):
            for segments in stand_ins(rows):
                self._run(rows, StepPlan(items=(), fresh_blocks=()), segments)

    def logits(self, plan: StepPlan) -> Tensor | None:
        """float32 [number of items, V], or None if ``plan`` must run uncaptured."""
        count = len(plan.items)
        if (
            self._is_broken
            or count > self._row_counts[-1]
            or not all(item.count == 1 and item.samples for item in plan.items)
            or self._builder.is_adjusted(plan)
        ):
            return None
        rows = self._row_counts[bisect_left(self._row_counts, count)]
        try:
            logits = self._run(rows, plan)[:count]
        except StagingOverflow as reason:
            logger.debug("step runs uncaptured: %s", reason)
            return None
        except CaptureFailed:
            # After a failed capture no other can be trusted; the ones that exist can be dropped.
            logger.exception("no step is captured any more; decoding is slower from here on")
            self._is_broken = True
            self._steps.clear()
            return None
        self.num_replays += 1
        self.num_padding_rows += rows - count
        return logits

    def _run(self, rows: int, plan: StepPlan, segments: Sequence[Segment] | None = None) -> Tensor:
        if self._tables.generation != self._generation:
            self._steps.clear()
            self._capture.reset()
            self._generation = self._tables.generation
        staging = self._stagings[rows]
        staging.begin()
        batch = self._builder.build(plan, staging=staging, num_rows=rows, segments=segments)
        staging.commit()
        key = (rows, batch.graph_key)
        if key not in self._steps:
            self._steps[key] = self._capture(lambda: self._forward(batch))
        return self._steps[key].replay()


def stand_ins(rows: int) -> list[list[Segment]]:
    """Segments of every kind of step: one version, a version per row, none.

    They name slot 0: whatever is or is not there, padding rows are computed and not used.
    """
    return [[Segment(0, rows, 0)], [Segment(row, row + 1, 0) for row in range(rows)], []]


def uncaptured_row_counts(max_tokens: int) -> tuple[int, ...]:
    """Sizes at which uncaptured steps meet kernels of their own."""
    return tuple(rows for rows in _UNCAPTURED_ROWS if rows <= max_tokens)


def row_counts(max_rows: int) -> tuple[int, ...]:
    """Sizes to capture for steps of up to ``max_rows`` rows."""
    below = tuple(rows for rows in _ROW_COUNTS if rows < max_rows)
    return (*below, max_rows) if max_rows <= _ROW_COUNTS[-1] else below


def static_capacity(rows: int, max_blocks: int, *, windows: int) -> int:
    """int32 elements that a captured step of ``rows`` rows may place; generous on purpose.

    Per row a few fields of the batch, of attention and of two segments, each list aligned; per
    window the block table of every row.
    """
    return 64 * (rows + 32) + windows * rows * (max_blocks + 8)


def eager_capacity(max_tokens: int, max_requests: int, max_blocks: int, *, windows: int) -> int:
    """int32 elements that any uncaptured step may place."""
    return 64 * (max_tokens + 32) + windows * max_requests * (max_blocks + 8)


class CaptureFailed(RuntimeError):
    """A step could not be recorded; the process should not try again."""


class CudaGraphStep:
    """A CUDA graph and its output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor) -> None:
        self._graph = graph
        self._output = output

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._output


class CudaCapture:
    """Records calls as CUDA graphs that share a memory pool and an output: none run side by side.

    All are recorded on one stream, for which libraries set up their scratch memory once.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._output: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        # A pool without graphs cannot be used again.
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> CudaGraphStep:
        """Raises ``CaptureFailed``; whatever ``step`` raises by itself passes through."""
        output = self._output_like(self._rehearse(step))
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output.copy_(step())
        except RuntimeError as error:
            raise CaptureFailed(f"a decode step cannot be captured: {error}") from error
        finally:
            # A failed capture leaves its own stream current.
            torch.cuda.set_stream(current)
        return CudaGraphStep(graph, output)

    def _rehearse(self, step: Callable[[], Tensor]) -> Tensor:
        """Compile kernels and grow scratch memory where allocation is still allowed."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = step()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        return result

    def _output_like(self, result: Tensor) -> Tensor:
        if self._output is None or self._output.shape[0] < result.shape[0]:
            self._output = torch.empty_like(result)
        return self._output[: result.shape[0]]
