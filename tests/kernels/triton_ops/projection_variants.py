"""Compiles the kernels of the projection op; prints what came out as JSON.

Run as a script, without ``TRITON_INTERPRET``.
"""

import json
from collections.abc import Iterator
from typing import Any

from compiled import CompiledKernel, compile_kernel

from multiflora.kernels.triton_ops import linear
from multiflora.kernels.triton_ops.dense_matmul import dense_matmul_kernel
from multiflora.kernels.triton_ops.lora_expand import lora_expand_kernel
from multiflora.kernels.triton_ops.lora_plan import SHRINK_ROWS
from multiflora.kernels.triton_ops.lora_shrink import lora_shrink_kernel
from multiflora.kernels.triton_ops.nf4_dequantize import nf4_dequantize_kernel
from multiflora.kernels.triton_ops.nf4_matmul import nf4_matmul_kernel
from multiflora.kernels.triton_ops.tiling import num_slabs, tile_matmul

ARCHITECTURES = (80, 89, 90)
MULTIPROCESSORS = {80: 108, 89: 142, 90: 132, 100: 148}
# The first is split, the second is not: o and gate_up of Llama-3.1-8B.
WIDE, NARROW, IN_FEATURES = 28_672, 4_096, 4_096
LORA_TABLES = {
    "tiles": "*i32:16",
    "segments": "*i32:16",
    "entries": "*i64:16",
    "shrunk": "*fp32:16",
    "entry_stride": "i32:16",
    "shrunk_rows": "i32",
    "second_slice": "i32:16",
    "third_slice": "i32:16",
}


def nf4_matmul(
    arch: int, rows: int, dtype: str = "bf16", *, lora: bool = True, width: int = NARROW
) -> CompiledKernel:
    tiling = tile_matmul(
        rows, width // 128, IN_FEATURES // 64, MULTIPROCESSORS[arch], batch_invariant=False
    )
    tensors = dict.fromkeys(("x", "values", "bias", "y"), f"*{dtype}:16")
    signature = {
        **tensors,
        "codes": "*i16:16",
        "absmax": "*fp16:16",
        "words": "*i32:16",
        "partials": "*fp32:16",
        "arrivals": "*i32:16",
        **LORA_TABLES,
        **{"M": "i32", "N": "i32:16", "num_groups": "i32"},
    }
    constants = {
        "BM": tiling.rows,
        "BN": 128,
        "SPLIT": tiling.split,
        "STAGES": tiling.stages,
        "HAS_BIAS": True,
        "LORA": lora,
        "PERMUTE": True,
        "PDL": lora and arch >= 90,
        **_rank_constants(),
    }
    return compile_kernel(
        nf4_matmul_kernel,
        signature,
        constants,
        arch=arch,
        num_warps=linear.WARPS,
        num_stages=tiling.stages,
        maxnreg=tiling.max_registers,
    )


def _rank_constants() -> dict[str, Any]:
    return {
        "V_STRIDE": linear.SHRUNK_STRIDE,
        "NUM_SLABS": num_slabs(IN_FEATURES),
        "RB": linear.RANK_BLOCK,
        "UPCAST": False,
    }


def lora_shrink(arch: int) -> CompiledKernel:
    tables = {k: v for k, v in LORA_TABLES.items() if k not in ("tiles", *_SLICES)}
    signature = {
        **tables,
        **{"x": "*bf16:16", "shrink_tiles": "*i32:16", "num_tiles": "i32", "K": "i32:16"},
    }
    constants = {
        "BM": SHRINK_ROWS,
        "BK": linear.SHRINK_COLUMNS,
        "PDL": arch >= 90,
        **_rank_constants(),
    }
    return _compile(lora_shrink_kernel, signature, constants, arch)


def lora_expand(arch: int, rows: int) -> CompiledKernel:
    tables = {k: v for k, v in LORA_TABLES.items() if k != "tiles"}
    signature = {
        **tables,
        **{"y": "*bf16:16", "expand_tiles": "*i32:16", "num_tiles": "i32", "N": "i32:16"},
    }
    constants = {"BM": rows, "BN": linear.EXPAND_COLUMNS[rows], **_rank_constants()}
    registers = linear.EXPAND_REGISTERS
    return _compile(lora_expand_kernel, signature, constants, arch, max_registers=registers)


def nf4_dequantize(arch: int) -> CompiledKernel:
    signature = {
        **dict.fromkeys(("values", "out"), "*bf16:16"),
        **{"codes": "*i16:16", "absmax": "*fp16:16", "words": "*i32:16"},
        **{"N": "i32:16", "num_groups": "i32", "first_block": "i32"},
    }
    return _compile(nf4_dequantize_kernel, signature, {"BN": 128, "PERMUTE": True}, arch)


def dense_matmul(arch: int) -> CompiledKernel:
    signature = {
        **dict.fromkeys(("x", "weight", "bias", "y"), "*bf16:16"),
        **{"M": "i32", "N": "i32:16", "K": "i32:16"},
    }
    constants = {
        "BM": 16,
        "BN": linear.DENSE_COLUMNS,
        "BK": linear.DENSE_DEPTH,
        "STAGES": 4,
        "HAS_BIAS": False,
        "UPCAST": False,
    }
    return _compile(dense_matmul_kernel, signature, constants, arch)


_SLICES = ("second_slice", "third_slice")


def _compile(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    arch: int,
    *,
    max_registers: int | None = None,
) -> CompiledKernel:
    return compile_kernel(
        kernel,
        signature,
        constants,
        arch=arch,
        num_warps=linear.WARPS,
        num_stages=3,
        maxnreg=max_registers,
    )


def variants() -> Iterator[tuple[str, int, CompiledKernel]]:
    for arch in ARCHITECTURES:
        for rows in (16, 32, 64):
            yield f"nf4-matmul-{rows}", arch, nf4_matmul(arch, rows)
    yield "nf4-matmul-16-unsplit", 90, nf4_matmul(90, 16, width=2 * WIDE)
    yield "nf4-matmul-16-base", 90, nf4_matmul(90, 16, lora=False)
    yield "nf4-matmul-64-base", 90, nf4_matmul(90, 64, lora=False)
    yield "nf4-matmul-16-fp16", 90, nf4_matmul(90, 16, "fp16")
    yield "nf4-matmul-16", 100, nf4_matmul(100, 16)
    yield "lora-shrink", 80, lora_shrink(80)
    yield "lora-shrink", 90, lora_shrink(90)
    yield "lora-expand-16", 90, lora_expand(90, 16)
    yield "lora-expand-64", 90, lora_expand(90, 64)
    yield "nf4-dequantize", 90, nf4_dequantize(90)
    yield "dense-matmul", 90, dense_matmul(90)


if __name__ == "__main__":
    print(json.dumps([(name, arch, kernel.to_json()) for name, arch, kernel in variants()]))
