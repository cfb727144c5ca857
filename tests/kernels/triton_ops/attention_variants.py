"""Compiles the attention, norm, activation and rotary kernels; prints what came out as JSON.

Run as a script, without ``TRITON_INTERPRET``.
"""

import json
from collections.abc import Iterator
from typing import Any

from compiled import CompiledKernel, compile_kernel

from multiflora.kernels.triton_ops import activation, norm, rotary
from multiflora.kernels.triton_ops.paged_decode import (
    decode_launch,
    merge_chunks_kernel,
    paged_decode_kernel,
)
from multiflora.kernels.triton_ops.paged_prefill import (
    DECODE_TILE,
    paged_prefill_kernel,
    prefill_launch,
)

ARCHITECTURES = (80, 89, 90)
# A group of four heads of 128 over pages of 16, as Llama-3.1-8B has.
GROUP, SIZE, NUM_KV_HEADS = 4, 128, 8


def decode(arch: int, dtype: str = "bf16", *, split: bool, size: int = SIZE) -> CompiledKernel:
    launch = decode_launch(padded(size))
    partials = ("partial_acc", "partial_peak", "partial_norm")
    signature = {
        **_paged(dtype),
        **dict.fromkeys(partials, "*fp32:16"),
        "scale": "fp32",
        "max_chunks": "i32",
    }
    constants = {
        **_shape(size),
        "BM": DECODE_TILE,
        "BN": launch.key_tile,
        "STAGES": launch.num_stages,
        "SPLIT": split,
    }
    return compile_kernel(
        paged_decode_kernel,
        signature,
        constants,
        arch=arch,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def prefill(
    arch: int, dtype: str = "bf16", *, invariant: bool = False, size: int = SIZE
) -> CompiledKernel:
    large = prefill_launch(padded(size))
    launch = decode_launch(padded(size)) if invariant else large
    constants = {
        **_shape(size),
        "BM": DECODE_TILE if invariant else large.max_row_tile,
        "BN": launch.key_tile,
        "STAGES": launch.num_stages,
    }
    return compile_kernel(
        paged_prefill_kernel,
        {**_paged(dtype), "scale": "fp32", "num_spans": "i32"},
        constants,
        arch=arch,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def merge_chunks(arch: int) -> CompiledKernel:
    names = ("partial_acc", "partial_peak", "partial_norm")
    signature = {
        "spans": "*i32:16",
        "out": "*bf16:16",
        **dict.fromkeys(names, "*fp32:16"),
        "max_chunks": "i32",
    }
    constants = {"D": SIZE, "DP": SIZE, "WINDOW": 0, "STAGES": 4, "UPCAST": False}
    return compile_kernel(
        merge_chunks_kernel, signature, constants, arch=arch, num_warps=1, num_stages=3
    )


def _paged(dtype: str) -> dict[str, str]:
    tensors = dict.fromkeys(("q", "k_cache", "v_cache", "out"), f"*{dtype}:16")
    return {**tensors, "spans": "*i32:16", "blocks": "*i32:16"}


def _shape(size: int) -> dict[str, Any]:
    return {
        "GROUP": GROUP,
        "D": size,
        "DP": padded(size),
        "P": 16,
        "KV_STRIDE": NUM_KV_HEADS * size,
        "WINDOW": 0,
        "UPCAST": False,
    }


def rms_norm(arch: int) -> CompiledKernel:
    tensors = dict.fromkeys(("x", "residual", "weight", "y", "total"), "*bf16:16")
    return compile_kernel(
        norm.rms_norm_kernel,
        {**tensors, "eps": "fp32", "H": "i32:16"},
        {"BLOCK": 4096, "ADD": True, "UPCAST": False},
        arch=arch,
        num_warps=norm.norm_warps(4096),
        num_stages=3,
    )


def silu_mul(arch: int) -> CompiledKernel:
    return compile_kernel(
        activation.silu_mul_kernel,
        {"gate_up": "*bf16:16", "y": "*bf16:16", "width": "i32:16"},
        {"BLOCK": activation.BLOCK, "UPCAST": False},
        arch=arch,
        num_warps=activation.NUM_WARPS,
        num_stages=3,
    )


def rotate_and_cache(arch: int) -> CompiledKernel:
    halves = ("qkv", "q_out", "k_cache", "v_cache", "q_weight", "k_weight")
    signature = {
        **dict.fromkeys(halves, "*bf16:16"),
        **dict.fromkeys(("cos", "sin"), "*fp32:16"),
        **dict.fromkeys(("positions", "cache_rows"), "*i32:16"),
        "eps": "fp32",
        "qkv_stride": "i32:16",
    }
    constants = {
        "NUM_HEADS": GROUP * NUM_KV_HEADS,
        "NUM_KV_HEADS": NUM_KV_HEADS,
        "D": SIZE,
        "HEADS": rotary.HEADS,
        "HALF": SIZE // 2,
        "NORM": True,
        "UPCAST": False,
    }
    return compile_kernel(
        rotary.rotate_and_cache_kernel,
        signature,
        constants,
        arch=arch,
        num_warps=rotary.NUM_WARPS,
        num_stages=3,
    )


def variants() -> Iterator[tuple[str, int, CompiledKernel]]:
    for arch in ARCHITECTURES:
        yield "decode", arch, decode(arch, split=True)
        yield "decode-whole", arch, decode(arch, split=False)
        yield "prefill", arch, prefill(arch)
        yield "prefill-invariant", arch, prefill(arch, invariant=True)
        yield "merge", arch, merge_chunks(arch)
    yield "decode-fp16", 90, decode(90, "fp16", split=True)
    yield "prefill-fp16", 90, prefill(90, "fp16")
    for size in (64, 80, 256):
        yield f"decode-{size}", 90, decode(90, split=True, size=size)
        yield f"prefill-{size}", 90, prefill(90, size=size)
    yield "prefill-256", 80, prefill(80, size=256)
    for kernel in (rms_norm, silu_mul, rotate_and_cache):
        yield kernel.__name__, 90, kernel(90)


if __name__ == "__main__":
    print(json.dumps([(name, arch, kernel.to_json()) for name, arch, kernel in variants()]))
