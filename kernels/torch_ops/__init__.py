"""The plain backend: readable PyTorch on any device, differentiable, the oracle of every test."""

from ..lora_tables import make_lora_tables, plan_lora
from .activation import silu_mul
from .attention import paged_attention, plan_attention
from .lookup import embedding, table_dtype
from .lora_linear import input_gradient, linear
from .nf4 import pack_nf4, slice_nf4, unpack_nf4
from .norm import add_rms_norm, rms_norm
from .rotary import rotate_and_cache
from .sampling import draw, peaks, top_k, weight_sums

NAME = "torch"
BATCH_INVARIANT = False
MASKS_UNWRITTEN_KV = False


def describe() -> str:
    return "plain torch"


__all__ = [
    "BATCH_INVARIANT",
    "MASKS_UNWRITTEN_KV",
    "NAME",
    "add_rms_norm",
    "describe",
    "draw",
    "embedding",
    "input_gradient",
    "linear",
    "make_lora_tables",
    "pack_nf4",
    "paged_attention",
    "peaks",
    "plan_attention",
    "plan_lora",
    "rms_norm",
    "rotate_and_cache",
    "silu_mul",
    "slice_nf4",
    "table_dtype",
    "top_k",
    "unpack_nf4",
    "weight_sums",
]
