"""Runs a plan on the device: owns the decoder and the KV tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiflora.kernels.staging import DirectStaging, PackedStaging

from .forward_batch import BatchBuilder, ForwardBatch
from .graphs import StepGraphs, stand_ins
from .models.config import ModelConfig
from .models.decoder import Decoder, KvCache
from .sampler import Draw, sample
from .scheduler import StepPlan


class Runner:
    """One forward pass and one draw per sampling request."""

    def __init__(
        self,
        decoder: Decoder,
        builder: BatchBuilder,
        caches: Sequence[KvCache],
        staging: DirectStaging | PackedStaging,
        *,
        zeroes_blocks: bool,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._decoder = decoder
        self._builder = builder
        self._caches = caches
        self._staging = staging
        self._zeroes_blocks = zeroes_blocks
        self.graphs = graphs

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Draw]:
        """Draws of the plan's sampling items, in plan order."""
        return sample(self.logits(plan), [item.request for item in plan.items if item.samples])

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Tensor:
        """float32 [B, V], one row per sampling item; valid until the next step."""
        if self._zeroes_blocks:
            self._zero(plan.fresh_blocks)
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

    def _zero(self, blocks: Sequence[int]) -> None:
        # A masked key contributes exactly zero only if it is finite: a reused block may hold
        # whatever another tenant's adapter left there.
        if blocks:
            index = torch.tensor(blocks, device=self._caches[0][0].device)
            for keys, values in self._caches:
                keys.index_fill_(0, index, 0)
                values.index_fill_(0, index, 0)


def allocate_caches(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KvCache]:
    """Zeroed key and value pages, one pair per layer."""
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    return [
        (
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in range(config.num_layers)
    ]
