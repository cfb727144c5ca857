"""Paged attention by the compiled core; by gathered keys where it cannot serve."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..ops import AttentionRun, Staging
from .core import LANES, core_for
from .gathered_attention import AttentionGroup, gathered_attention, group_runs

# Rows of one request that share the reading of its keys.
_ROWS_PER_TASK = 8


@dataclass(frozen=True)
class AttentionPlan:
    """A step's runs and what each way of computing them needs."""

    runs: Sequence[AttentionRun]
    block_size: int
    window: int | None

    @cached_property
    def tasks(self) -> "CoreTasks":
        return _make_tasks(self.runs, self.window)

    @cached_property
    def groups(self) -> list[AttentionGroup]:
        return group_runs(self.runs, block_size=self.block_size, window=self.window)


@dataclass(frozen=True, slots=True)
class CoreTasks:
    """What ``Core.attention`` takes beside its tensors."""

    tasks: Tensor  # int64 [tasks, 4]
    blocks: Tensor  # int64, all block tables
    num_pairs: int  # of queries and keys
    most_rows: int


def plan_attention(
    runs: Sequence[AttentionRun],
    *,
    num_rows: int,
    block_size: int,
    window: int | None,
    max_context: int,
    staging: Staging,
) -> AttentionPlan:
    return AttentionPlan(runs, block_size, window)


def _make_tasks(runs: Sequence[AttentionRun], window: int | None) -> CoreTasks:
    tasks: list[int] = []
    blocks: list[int] = []
    num_pairs = most_rows = 0
    for run in runs:
        for row in range(run.start, run.stop, _ROWS_PER_TASK):
            count = min(_ROWS_PER_TASK, run.stop - row)
            position = run.first_position + row - run.start
            tasks += (row, count, position, len(blocks))
            num_pairs += count * min(position + count, window or position + count)
            most_rows = max(most_rows, count)
        blocks += run.block_table
    return CoreTasks(torch.tensor(tasks).view(-1, 4), torch.tensor(blocks), num_pairs, most_rows)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    core = core_for(q.dtype)
    if core is None or q.shape[2] % LANES or k_cache.dtype != q.dtype:
        return gathered_attention(q, k_cache, v_cache, plan.groups, scale)
    found = plan.tasks
    return core.attention(
        q.contiguous(),
        (k_cache, v_cache),
        found.tasks,
        found.blocks,
        window=plan.window,
        scale=scale,
        num_pairs=found.num_pairs,
        most_rows=found.most_rows,
    )
