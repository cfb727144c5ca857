"""bitsandbytes' serialized NF4, read and written: ``weight`` and its ``weight.*`` companions.

The companions are those of ``bitsandbytes.functional.QuantState.as_dict(packed=True)``.
"""

import json
from typing import Any

import torch
from torch import Tensor

from multiflora.adapters.tensor_file import TensorSpec
from multiflora.kernels.nf4 import BLOCK_SIZE, CODEBOOK, Nf4Tensor, expand_absmax
from multiflora.kernels.quantize import NESTED_BLOCK_SIZE, NestedAbsmax, encode

from ..errors import InvalidCheckpoint, UnsupportedModel
from .checkpoint import Checkpoint

STATE_PREFIX = "quant_state.bitsandbytes__"
# JSON ends in blanks as well as anywhere: with one length for all, files are planned ahead.
_STATE_BYTES = 256


def is_quantized(checkpoint: Checkpoint, name: str) -> bool:
    """Whether ``name`` (ending in ``.weight``) is stored in a bitsandbytes 4-bit form."""
    return f"{name}.absmax" in checkpoint


def encode_linear(name: str, dense: Tensor) -> Nf4Tensor:
    """Quantize ``dense`` [N, K] with plain float32 scales.

    Raises `UnsupportedModel` for columns that NF4 cannot hold, `InvalidCheckpoint` for values.
    """
    if dense.shape[1] % BLOCK_SIZE:
        raise UnsupportedModel(
            f"tensor {name} has {dense.shape[1]} columns, no multiple of "
            f"{BLOCK_SIZE}; load this model with --quantization none"
        )
    plain = encode(dense)
    if not plain.absmax.isfinite().all():
        raise InvalidCheckpoint(f"tensor {name} contains NaN or infinity")
    return plain


def stored_specs(name: str, shape: tuple[int, int]) -> dict[str, TensorSpec]:
    """The tensors that ``stored_tensors`` makes of ``name`` (ending in ``.weight``)."""
    num_weights = shape[0] * shape[1]
    num_blocks = num_weights // BLOCK_SIZE
    return {
        name: TensorSpec(torch.uint8, (num_weights // 2, 1)),
        f"{name}.absmax": TensorSpec(torch.uint8, (num_blocks,)),
        f"{name}.quant_map": TensorSpec(torch.float32, (len(CODEBOOK),)),
        f"{name}.nested_absmax": TensorSpec(torch.float32, (-(-num_blocks // NESTED_BLOCK_SIZE),)),
        f"{name}.nested_quant_map": TensorSpec(torch.float32, (256,)),
        f"{name}.{STATE_PREFIX}nf4": TensorSpec(torch.uint8, (_STATE_BYTES,)),
    }


def stored_tensors(
    name: str, plain: Nf4Tensor, nested: NestedAbsmax, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What bitsandbytes stores of the codes of ``plain`` and ``nested`` scales of it.

    It decodes them to ``dtype``.
    """
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK_SIZE,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [plain.out_features, plain.in_features],
        "nested_blocksize": NESTED_BLOCK_SIZE,
        "nested_dtype": "float32",
        "nested_offset": nested.offset,
    }
    text = json.dumps(state).encode().ljust(_STATE_BYTES)
    return {
        name: plain.codes.reshape(-1, 1),
        f"{name}.absmax": nested.codes,
        f"{name}.quant_map": torch.tensor(CODEBOOK),
        f"{name}.nested_absmax": nested.scales,
        f"{name}.nested_quant_map": nested.code,
        f"{name}.{STATE_PREFIX}nf4": torch.tensor(list(text), dtype=torch.uint8),
    }


def take_nf4(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> Nf4Tensor:
    """Read the codes and scales of ``name``; raises naming the tensor if they are not NF4/64."""
    state = _read_state(checkpoint, name)
    _check_state(state, name, shape)
    # A storage dtype other than uint8 is a view of the same bytes.
    codes = checkpoint.take(name).reshape(-1).view(torch.uint8)
    num_weights = shape[0] * shape[1]
    _check_count(codes, num_weights // 2, name)
    _check_codebook(checkpoint.take(f"{name}.quant_map"), CODEBOOK, f"{name}.quant_map")
    absmax = _take_absmax(checkpoint, name, state, num_weights // BLOCK_SIZE)
    return Nf4Tensor(codes, absmax, *shape)


def _read_state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    key = f"{name}.{STATE_PREFIX}nf4"
    if f"{name}.{STATE_PREFIX}fp4" in checkpoint:
        raise UnsupportedModel(f"tensor {name} is fp4; only nf4 checkpoints are supported")
    try:
        state = json.loads(bytes(checkpoint.take(key).tolist()))
    except ValueError as error:
        raise InvalidCheckpoint(f"tensor {key} is damaged: {error}") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"tensor {key} is damaged: not a JSON object")
    return state


def _check_state(state: dict[str, Any], name: str, shape: tuple[int, int]) -> None:
    if state.get("quant_type") != "nf4":
        raise UnsupportedModel(f"tensor {name} is {state.get('quant_type')}; only nf4 is supported")
    if state.get("blocksize") != BLOCK_SIZE:
        raise UnsupportedModel(
            f"tensor {name} has blocks of {state.get('blocksize')}; only {BLOCK_SIZE} is supported"
        )
    if tuple(state.get("shape") or ()) != shape:
        raise InvalidCheckpoint(
            f"tensor {name} is {state.get('shape')}, config.json implies {list(shape)}"
        )
    if shape[1] % BLOCK_SIZE:
        raise UnsupportedModel(
            f"tensor {name} has {shape[1]} columns; NF4 is served in multiples of {BLOCK_SIZE}"
        )


def _take_absmax(checkpoint: Checkpoint, name: str, state: dict[str, Any], count: int) -> Tensor:
    absmax = checkpoint.take(f"{name}.absmax").reshape(-1)
    _check_count(absmax, count, f"{name}.absmax")
    if f"{name}.nested_absmax" not in checkpoint:
        return absmax.float()
    if state.get("nested_blocksize", NESTED_BLOCK_SIZE) != NESTED_BLOCK_SIZE:
        raise UnsupportedModel(
            f"tensor {name} has nested blocks of {state['nested_blocksize']}; "
            f"only {NESTED_BLOCK_SIZE} is supported"
        )
    scales = checkpoint.take(f"{name}.nested_absmax").reshape(-1)
    _check_count(scales, -(-count // NESTED_BLOCK_SIZE), f"{name}.nested_absmax")
    code = checkpoint.take(f"{name}.nested_quant_map").reshape(-1)
    _check_count(code, 256, f"{name}.nested_quant_map")
    if absmax.dtype != torch.uint8 or not isinstance(state.get("nested_offset"), float | int):
        raise InvalidCheckpoint(f"tensor {name}.absmax is not in the nested form it announces")
    return expand_absmax(absmax, code, scales, torch.tensor(float(state["nested_offset"])))


def _check_codebook(found: Tensor, expected: tuple[float, ...], name: str) -> None:
    close = found.numel() == len(expected) and torch.allclose(
        found.float().reshape(-1), torch.tensor(expected), rtol=0, atol=1e-6
    )
    if not close:
        raise UnsupportedModel(f"tensor {name} is not the standard NF4 codebook")


def _check_count(tensor: Tensor, count: int, name: str) -> None:
    if tensor.numel() != count:
        raise InvalidCheckpoint(f"tensor {name} has {tensor.numel()} values; expected {count}")
