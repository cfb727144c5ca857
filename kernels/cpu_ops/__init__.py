"""The CPU backend: batch-invariant, so a request's bits never depend on its neighbours.

Every output of a matmul is one fixed sum, by a compiled core or by row blocks of one fixed size.
Attention takes the keys of a query in an order that depends on the query's own position alone.
"""

from ..torch_ops.lookup import embedding
from .activation import silu_mul
from .attention import paged_attention, plan_attention
from .core import load_core, table_dtype
from .lora_linear import input_gradient, linear
from .lora_tables import make_lora_tables, plan_lora
from .nf4 import pack_nf4, slice_nf4, unpack_nf4
from .norm import add_rms_norm, rms_norm
from .processor import has_fast_bfloat16
from .rotary import rotate_and_cache
from .sampling import draw, peaks, top_k, weight_sums

NAME = "cpu"
BATCH_INVARIANT = True
MASKS_UNWRITTEN_KV = False


def describe() -> str:
    core = load_core()
    if core is None:
        return "torch; slow: no compiled core here, see `make install`"
    return f"compiled core, {core.tier}"


__all__ = [
    "BATCH_INVARIANT",
    "MASKS_UNWRITTEN_KV",
    "NAME",
    "add_rms_norm",
    "describe",
    "draw",
    "embedding",
    "has_fast_bfloat16",
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
