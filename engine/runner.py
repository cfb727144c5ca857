"""Runs a plan on the device: owns the decoder and the KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiflora.kernels.staging import DirectStaging, PackedStaging

from .forward_batch import BatchBuilder, ForwardBatch
from .graphs import StepGraphs, stand_ins
from .kv_arena import KvArena
from .models.decoder import Decoder
from .outcome import Outcome, outcomes
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
        return outcomes(plan.items, self.logits(plan))

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Tensor:
        """float32 [B, V], ``num_logits`` rows per item; valid until the next step."""
        if self._zeroes_blocks:
            # A masked key contributes exactly zero only if it is finite: a reused block may hold
            # whatever another tenant's adapter left there.
            self._arena.clear(plan.fresh_blocks)
        captured = self.graphs.logits(plan) if self.graphs else None
        return self._uncaptured(plan) if captured is None else captured

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

    def _uncaptured(self, plan: StepPlan) -> Tensor:
        self._staging.begin()
        batch = self._builder.build(plan, staging=self._staging)
        self._staging.commit()
        return self.forward(batch)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """float32 [B, V] of the batch's sample rows."""
        hidden = self._decoder.forward(batch, self._caches)
        return self._decoder.logits(hidden.index_select(0, batch.sample_rows), batch)
