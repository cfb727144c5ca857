"""Rounding float32 to the model's dtype, also where the interpreter would cut bits off."""

import triton
import triton.language as tl


@triton.jit
def round_to(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """float32 ``x`` to the nearest value of ``dtype``, ties to even."""
    if UPCAST and dtype == tl.bfloat16:
        # The interpreter truncates to bfloat16, and makes normal numbers of some subnormal ones:
        # leave it nothing to cut off.
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, nearest, bits).to(tl.float32, bitcast=True)
    return x.to(dtype)
