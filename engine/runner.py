"""Runs a plan on the device: owns the decoder and the KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiflora.kernels.staging import DirectStaging, PackedStaging

from .forward_batch import BatchBuilder, ForwardBatch
from .graphs import StepGraphs, stand_ins
from .kv_arena import KvArena
from .models.decoder import Decoder
from .outcome import Outcome, outcomes, with_embeddings
from .scheduler import StepPlan


class Runner:
    """One forward pass, one draw per sampling request, and the scores that are asked for."""

    def __init__(
        self,
        decoder: Decoder,
        builder: BatchBuilder,
        arena: KvArena,
        staging: DirectStaging | PackedStaging,
        *,
        zeroes_blocks: bool,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._decoder = decoder
        self._builder = builder
        self._arena = arena
        self._caches = arena.caches()
        self._staging = staging
        self._zeroes_blocks = zeroes_blocks
        self.graphs = graphs

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Outcome]:
        """What the plan's items bring, in plan order."""
        if not any(item.pools for item in plan.items):
            return outcomes(plan.items, self.logits(plan), self._decoder.ops)
        self._zero_blocks(plan)
        batch = self._batch(plan)
        hidden = self._decoder.forward(batch, self._caches)
        found = outcomes(plan.items, self._logits_of(hidden, batch), self._decoder.ops)
        return with_embeddings(plan.items, found, hidden)

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Tensor:
        """float32 [B, V], ``num_logits`` rows per item; valid until the next step."""
        self._zero_blocks(plan)
        captured = self.graphs.logits(plan) if self.graphs else None
        return self.forward(self._batch(plan)) if captured is None else captured

    @torch.inference_mode()
    def warm_up(self, row_counts: Sequence[int]) -> None:
        """Run uncaptured steps of padding rows, so that no request waits for a compiler."""
        for rows in row_counts:
            for segments in stand_ins(rows)[::2]:
                self._staging.begin()
                batch = self._builder.build(
                    StepPlan(items=(), fresh_blocks=()),
                    staging=self._staging,
                    num_rows=rows,
                    segments=segments,
                )
                self._staging.commit()
                self.forward(batch)

    def _zero_blocks(self, plan: StepPlan) -> None:
        if self._zeroes_blocks:
            # A masked key contributes exactly zero only if it is finite: a reused block may hold
            # whatever another tenant's adapter left there.
            self._arena.clear(plan.fresh_blocks)

    def _batch(self, plan: StepPlan) -> ForwardBatch:
        self._staging.begin()
        batch = self._builder.build(plan, staging=self._staging)
        self._staging.commit()
        return batch

    def forward(self, batch: ForwardBatch) -> Tensor:
        """float32 [B, V] of the batch's sample rows."""
        return self._logits_of(self._decoder.forward(batch, self._caches), batch)

    def _logits_of(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        return self._decoder.logits(hidden.index_select(0, batch.sample_rows), batch)
