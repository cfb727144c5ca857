"""The projection op: which kernels run for a weight, a number of rows and a plan."""

from dataclasses import dataclass

# pyright: reportArgumentType=false
import torch
from torch import Tensor
from torch.nn import functional

from ..ops import DenseWeight, LoraInput, Nf4Weight, Weight
from .accelerator import Accelerator
from .dense_matmul import dense_matmul_kernel
from .interpreter import INTERPRETED
from .lora_expand import lora_expand_kernel
from .lora_plan import LoraPlan
from .lora_shrink import lora_shrink_kernel
from .lora_tables import MAX_RANK, RANK_BLOCK, SHRINK_ROWS
from .nf4_dequantize import nf4_dequantize_kernel
from .nf4_layout import TiledShape
from .nf4_matmul import nf4_matmul_kernel
from .tiling import FUSED_ROWS, ceil_div, num_slabs, row_tile, tile_matmul

WARPS = 4
# Programs that share the ranks of one shrink tile.
_RANK_PROGRAMS = 4
# Programs that share the tiles of a step: a captured grid has room for many more than it uses.
_TILE_PROGRAMS = 32
SHRINK_COLUMNS = 128
SHRUNK_STRIDE = 3 * MAX_RANK
# Columns of a stand-alone expand by its rows: sum and delta fill the registers of four warps.
EXPAND_COLUMNS = {16: 128, 64: 64}
EXPAND_REGISTERS = 224
# A decoded slice stays in the second-level cache between its two uses.
_SLICE_BYTES = 16 << 20
DENSE_COLUMNS, DENSE_DEPTH = 128, 64


class Linear:
    """``Ops.linear`` on one accelerator, in one mode."""

    def __init__(self, accelerator: Accelerator, *, batch_invariant: bool) -> None:
        self._accelerator = accelerator
        self._batch_invariant = batch_invariant

    def __call__(
        self, x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None
    ) -> Tensor:
        x = x.contiguous()
        if isinstance(weight, DenseWeight):
            return self._then_expand(self._dense(x, weight.data, bias), x, lora)
        if x.shape[0] > FUSED_ROWS and not self._batch_invariant:
            return self._then_expand(self.decode_and_multiply(x, weight, bias), x, lora)
        if lora is not None and not lora.plan.in_epilogue:
            return self._then_expand(self._fused(x, weight, bias, None), x, lora)
        return self._fused(x, weight, bias, lora)

    def _fused(
        self, x: Tensor, weight: Nf4Weight, bias: Tensor | None, lora: LoraInput | None
    ) -> Tensor:
        shape = TiledShape(weight.out_features, weight.in_features)
        num_rows = x.shape[0]
        tiling = tile_matmul(
            num_rows,
            shape.num_blocks,
            shape.num_groups,
            self._accelerator.num_multiprocessors,
            batch_invariant=self._batch_invariant,
        )
        tiles = ceil_div(num_rows, tiling.rows)
        workspace = self._accelerator.workspace
        slab = tiles * tiling.rows * shape.num_blocks * shape.rows
        partials = workspace.get("partials", slab * tiling.split, torch.float32)
        arrivals = workspace.get("arrivals", tiles * shape.num_blocks, torch.int32)
        y = x.new_empty(num_rows, weight.out_features)
        words, values = self._accelerator.look_up(x.dtype)
        overlap = lora is not None and self._accelerator.has_pdl
        delta = self._delta_arguments(x, y, lora, overlap=overlap)
        nf4_matmul_kernel[shape.num_blocks, tiling.split, tiles](
            x,
            weight.tensors["codes"],
            weight.tensors["absmax"],
            words,
            values,
            x if bias is None else bias,
            y,
            partials,
            arrivals,
            x if lora is None else lora.plan.tiles,
            delta.segments,
            delta.entries,
            delta.shrunk,
            num_rows,
            weight.out_features,
            shape.num_groups,
            delta.entry_stride,
            delta.shrunk_rows,
            delta.second_slice,
            delta.third_slice,
            BM=tiling.rows,
            BN=shape.rows,
            SPLIT=tiling.split,
            STAGES=tiling.stages,
            HAS_BIAS=bias is not None,
            LORA=lora is not None,
            V_STRIDE=SHRUNK_STRIDE,
            NUM_SLABS=num_slabs(x.shape[1]),
            RB=RANK_BLOCK,
            PERMUTE=self._accelerator.permute,
            UPCAST=INTERPRETED,
            PDL=overlap,
            **_options(max_registers=tiling.max_registers, overlap=overlap),
        )
        return y

    def _delta_arguments(
        self, x: Tensor, y: Tensor, lora: LoraInput | None, *, overlap: bool
    ) -> "_Delta":
        """Run the shrink; what the expand needs of it. Without adapters, unread placeholders."""
        if lora is None:
            width = y.shape[1]
            return _Delta(x, x, x, 0, 0, width, width)
        plan: LoraPlan = lora.plan
        entries = lora.table.entries
        slabs = num_slabs(x.shape[1])
        size = slabs * plan.num_shrunk_rows * SHRUNK_STRIDE
        shrunk = self._accelerator.workspace.get("shrunk", size, torch.float32)
        programs = min(plan.num_shrink_tiles, _TILE_PROGRAMS)
        lora_shrink_kernel[programs, slabs, _RANK_PROGRAMS](
            x,
            shrunk,
            plan.shrink_tiles,
            plan.num_shrink_tiles,
            plan.segments,
            entries,
            entries.stride(0),
            plan.num_shrunk_rows,
            x.shape[1],
            BM=SHRINK_ROWS,
            BK=SHRINK_COLUMNS,
            RB=RANK_BLOCK,
            NUM_SLABS=slabs,
            V_STRIDE=SHRUNK_STRIDE,
            UPCAST=INTERPRETED,
            PDL=overlap,
            **_options(overlap=overlap),
        )
        starts = lora.table.slice_starts()
        return _Delta(
            plan.segments, entries, shrunk, entries.stride(0), plan.num_shrunk_rows, *starts
        )

    def _then_expand(self, y: Tensor, x: Tensor, lora: LoraInput | None) -> Tensor:
        """Add the deltas to a finished ``y`` in place."""
        if lora is None:
            return y
        plan: LoraPlan = lora.plan
        delta = self._delta_arguments(x, y, lora, overlap=False)
        columns = EXPAND_COLUMNS[plan.expand_rows]
        programs = min(plan.num_expand_tiles, _TILE_PROGRAMS)
        lora_expand_kernel[ceil_div(y.shape[1], columns), programs](
            y,
            plan.expand_tiles,
            plan.num_expand_tiles,
            delta.segments,
            delta.entries,
            delta.shrunk,
            y.shape[1],
            delta.entry_stride,
            delta.shrunk_rows,
            delta.second_slice,
            delta.third_slice,
            BM=plan.expand_rows,
            BN=columns,
            V_STRIDE=SHRUNK_STRIDE,
            NUM_SLABS=num_slabs(x.shape[1]),
            RB=RANK_BLOCK,
            UPCAST=INTERPRETED,
            **_options(max_registers=EXPAND_REGISTERS),
        )
        return y

    def decode_and_multiply(
        self,
        x: Tensor,
        weight: Nf4Weight,
        bias: Tensor | None = None,
        *,
        slice_bytes: int | None = None,
    ) -> Tensor:
        """Many rows: decode a slice that fits the cache, multiply it, go on to the next."""
        shape = TiledShape(weight.out_features, weight.in_features)
        row_bytes = weight.in_features * x.element_size()
        blocks_at_once = max(1, (slice_bytes or _SLICE_BYTES) // (row_bytes * shape.rows))
        y = x.new_empty(x.shape[0], weight.out_features)
        size = blocks_at_once * shape.rows * weight.in_features
        scratch = self._accelerator.workspace.get(f"slice-{x.dtype}", size, x.dtype)
        for first in range(0, shape.num_blocks, blocks_at_once):
            blocks = min(blocks_at_once, shape.num_blocks - first)
            columns = slice(
                first * shape.rows, min((first + blocks) * shape.rows, weight.out_features)
            )
            dense = scratch[: (columns.stop - columns.start) * weight.in_features]
            self._decode(weight, dense, first, blocks)
            matrix = dense.view(-1, weight.in_features).T
            if bias is None:
                torch.mm(x, matrix, out=y[:, columns])
            else:
                torch.addmm(bias[columns], x, matrix, out=y[:, columns])
        return y

    def _decode(self, weight: Nf4Weight, out: Tensor, first_block: int, num_blocks: int) -> None:
        shape = TiledShape(weight.out_features, weight.in_features)
        words, values = self._accelerator.look_up(out.dtype)
        nf4_dequantize_kernel[num_blocks, shape.num_groups](
            weight.tensors["codes"],
            weight.tensors["absmax"],
            words,
            values,
            out,
            weight.out_features,
            shape.num_groups,
            first_block,
            BN=shape.rows,
            PERMUTE=self._accelerator.permute,
            **_options(),
        )

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._batch_invariant:
            return functional.linear(x, weight, bias)
        y = x.new_empty(x.shape[0], weight.shape[0])
        rows = row_tile(x.shape[0], batch_invariant=True)
        grid = (ceil_div(weight.shape[0], DENSE_COLUMNS), ceil_div(x.shape[0], rows))
        dense_matmul_kernel[grid](
            x,
            weight,
            x if bias is None else bias,
            y,
            x.shape[0],
            weight.shape[0],
            weight.shape[1],
            BM=rows,
            BN=DENSE_COLUMNS,
            BK=DENSE_DEPTH,
            STAGES=4,
            HAS_BIAS=bias is not None,
            UPCAST=INTERPRETED,
            **_options(),
        )
        return y


@dataclass(frozen=True, slots=True)
class _Delta:
    """What an expand reads; the fields are its kernel's arguments."""

    segments: Tensor
    entries: Tensor
    shrunk: Tensor
    entry_stride: int
    shrunk_rows: int
    second_slice: int
    third_slice: int


def _options(*, max_registers: int | None = None, overlap: bool = False) -> dict[str, int | bool]:
    """Compiler and launch options; the interpreter knows but the first of them."""
    options: dict[str, int | bool] = {"num_warps": WARPS}
    if max_registers and not INTERPRETED:
        options["maxnreg"] = max_registers
    if overlap:
        options["launch_pdl"] = True
    return options
