"""What this processor can run of the compiled core."""

from functools import cache

import torch


@cache
def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX-512-BF16), and may."""
    from bitsandbytes.functional import has_avx512bf16

    return _may_use_avx512() and bool(has_avx512bf16())


def tiers() -> tuple[str, ...]:
    """Names in ``build.TIERS``, best first; none where torch finds neither AVX2 nor FMA."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return ("avx2",)
    if not _may_use_avx512():
        return ()
    return (*(("avx512-bf16",) if has_fast_bfloat16() else ()), "avx512", "avx2")


def _may_use_avx512() -> bool:
    """ATEN_CPU_CAPABILITY=avx2, torch's own switch, leaves AVX-512 out."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
