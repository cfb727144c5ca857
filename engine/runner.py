"""Runs a plan on the device: owns the decoder and the KV tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .forward_batch import BatchBuilder
from .models.config import ModelConfig
from .models.decoder import Decoder, KvCache
from .sampler import Draw, sample
from .scheduler import StepPlan


class Runner:
    """One forward pass and one draw per sampling request."""

    def __init__(self, decoder: Decoder, builder: BatchBuilder, caches: Sequence[KvCache]) -> None:
        self._decoder = decoder
        self._builder = builder
        self._caches = caches

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Draw]:
        """Draws of the plan's sampling items, in plan order."""
        return sample(self.logits(plan), [item.request for item in plan.items if item.samples])

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Tensor:
        """float32 [B, V], one row per sampling item."""
        self._zero(plan.fresh_blocks)
        batch = self._builder.build(plan)
        hidden = self._decoder.forward(batch, self._caches)
        return self._decoder.logits(hidden[batch.sample_rows])

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
