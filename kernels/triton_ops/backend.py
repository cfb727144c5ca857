"""``Ops`` by Triton kernels on one CUDA device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..nf4 import Nf4Tensor
from ..ops import DenseWeight, LoraTables, Nf4Weight, Segment, Staging, Weight
from ..torch_ops.lookup import embedding, table_dtype
from ..torch_ops.sampling import draw, peaks, top_k, weight_sums
from . import nf4_layout
from .accelerator import Accelerator
from .activation import silu_mul
from .attention_plan import AttentionPlan, plan_attention
from .linear import Linear
from .lora_plan import LoraPlan, plan_lora
from .lora_tables import DeviceTables
from .norm import add_rms_norm, rms_norm
from .paged_attention import INVARIANT_ROW_TILE, ROW_TILE, paged_attention
from .rotary import rotate_and_cache


class TritonOps:
    """The GPU backend. Unlike the others it has state: scratch memory, tables, and its mode."""

    NAME = "triton"
    MASKS_UNWRITTEN_KV = True

    def __init__(self, accelerator: Accelerator, *, batch_invariant: bool = False) -> None:
        self.BATCH_INVARIANT = batch_invariant
        self.accelerator = accelerator
        self.linear = Linear(accelerator, batch_invariant=batch_invariant)

    def describe(self) -> str:
        mode = ", batch-invariant" if self.BATCH_INVARIANT else ""
        look_up = "byte-permute" if self.accelerator.permute else "portable"
        return f"fused NF4 and LoRA, {look_up} look-up{mode}"

    def pack_nf4(self, weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
        return nf4_layout.pack_nf4(weight, dtype)

    def unpack_nf4(self, weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
        return nf4_layout.unpack_nf4(weight, dtype)

    def input_gradient(self, dy: Tensor, weight: Weight) -> Tensor:
        if isinstance(weight, DenseWeight):
            return dy @ weight.data.to(dy.dtype)
        return dy @ self.unpack_nf4(weight, dy.dtype)

    def slice_nf4(self, weight: Nf4Weight, start: int, stop: int) -> Nf4Weight:
        return nf4_layout.slice_nf4(weight, start, stop)

    def make_lora_tables(self, widths: Sequence[Sequence[int]], device: torch.device) -> LoraTables:
        return DeviceTables(widths, device)

    def plan_lora(
        self, segments: Sequence[Segment], *, num_rows: int, staging: Staging
    ) -> LoraPlan:
        return plan_lora(
            segments, num_rows=num_rows, staging=staging, batch_invariant=self.BATCH_INVARIANT
        )

    embedding = staticmethod(embedding)
    table_dtype = staticmethod(table_dtype)
    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    silu_mul = staticmethod(silu_mul)
    rotate_and_cache = staticmethod(rotate_and_cache)
    plan_attention = staticmethod(plan_attention)
    peaks = staticmethod(peaks)
    top_k = staticmethod(top_k)
    weight_sums = staticmethod(weight_sums)
    draw = staticmethod(draw)

    def paged_attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float
    ) -> Tensor:
        row_tile = INVARIANT_ROW_TILE if self.BATCH_INVARIANT else ROW_TILE
        return paged_attention(q, k_cache, v_cache, plan, scale, row_tile=row_tile)
