"""Reads bitsandbytes' serialized NF4: ``weight`` and its ``weight.*`` companions, unchanged.

The companions are those of ``bitsandbytes.functional.QuantState.as_dict(packed=True)``.
"""

import json
from typing import Any

import torch
from torch import Tensor

from multiflora.kernels.nf4 import BLOCK_SIZE, CODEBOOK, Nf4Tensor, expand_absmax
from multiflora.kernels.quantize import NESTED_BLOCK_SIZE

from ..errors import InvalidCheckpoint, UnsupportedModel
from .checkpoint import Checkpoint

STATE_PREFIX = "quant_state.bitsandbytes__"


def is_quantized(checkpoint: Checkpoint, name: str) -> bool:
    """Whether ``name`` (ending in ``.weight``) is stored in a bitsandbytes 4-bit form."""
    return f"{name}.absmax" in checkpoint


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
