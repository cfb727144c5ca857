import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

from multiflora.adapters.tensor_file import TensorSpec
from multiflora.engine.errors import InvalidCheckpoint, UnsupportedModel
from multiflora.engine.models.bnb_format import (
    encode_linear,
    is_quantized,
    stored_specs,
    stored_tensors,
    take_nf4,
)
from multiflora.engine.models.checkpoint import Checkpoint
from multiflora.kernels import nf4
from multiflora.kernels.quantize import nest

NAME = "model.layer.weight"
SHAPE = (24, 192)


def quantized(
    *, nested: bool = True, storage: torch.dtype = torch.uint8, **settings: Any
) -> tuple[dict[str, torch.Tensor], Any]:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, state = functional.quantize_4bit(
        weight,
        compress_statistics=nested,
        quant_storage=storage,
        **{"quant_type": "nf4", "blocksize": 64, **settings},
    )
    tensors = {f"{NAME}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {NAME: codes, **tensors}, state


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "m.safetensors")
    return Checkpoint.open(folder)


def edit_state(tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    key = next(key for key in tensors if ".quant_state." in key)
    state = json.loads(bytes(tensors[key].tolist())) | changes
    tensors[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_codes_and_values_equal_bitsandbytes(
    tmp_path: Path, nested: bool, storage: torch.dtype
) -> None:
    tensors, state = quantized(nested=nested, storage=storage)
    source = checkpoint(tmp_path, tensors)
    weight = take_nf4(source, NAME, SHAPE)
    source.check_all_taken()

    assert torch.equal(weight.codes, tensors[NAME].reshape(-1).view(torch.uint8))
    expected = functional.dequantize_4bit(tensors[NAME], state)
    assert torch.equal(nf4.dequantize(weight, torch.bfloat16), expected)


def test_dense_tensors_are_told_apart(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, quantized()[0] | {"other.weight": torch.ones(2)})
    assert is_quantized(source, NAME)
    assert not is_quantized(source, "other.weight")


def test_fp4_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, quantized(quant_type="fp4")[0])
    with pytest.raises(UnsupportedModel, match=f"{NAME} is fp4"):
        take_nf4(source, NAME, SHAPE)


def test_other_block_sizes_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, quantized(blocksize=32)[0])
    with pytest.raises(UnsupportedModel, match="blocks of 32"):
        take_nf4(source, NAME, SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"shape": [24, 128]}, r"config\.json implies", id="shape"),
        pytest.param({"nested_blocksize": 128}, "nested blocks of 128", id="nested-blocks"),
        pytest.param({"nested_offset": None}, "nested form", id="no-offset"),
        pytest.param({"quant_type": "int4"}, "int4", id="type"),
    ],
)
def test_contradictory_states_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tensors, _ = quantized()
    edit_state(tensors, **changes)
    with pytest.raises((InvalidCheckpoint, UnsupportedModel), match=message):
        take_nf4(checkpoint(tmp_path, tensors), NAME, SHAPE)


@pytest.mark.parametrize(
    "companion", ["", ".absmax", ".nested_absmax", ".nested_quant_map", ".quant_map"]
)
def test_tensors_of_the_wrong_size_are_named(tmp_path: Path, companion: str) -> None:
    tensors, _ = quantized()
    key = NAME + companion
    tensors[key] = tensors[key].reshape(-1)[:-1].clone()
    with pytest.raises((InvalidCheckpoint, UnsupportedModel), match=f"{key} "):
        take_nf4(checkpoint(tmp_path, tensors), NAME, SHAPE)


def test_missing_companion_is_named(tmp_path: Path) -> None:
    tensors, _ = quantized()
    del tensors[f"{NAME}.nested_quant_map"]
    with pytest.raises(InvalidCheckpoint, match="nested_quant_map"):
        take_nf4(checkpoint(tmp_path, tensors), NAME, SHAPE)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    tensors, _ = quantized()
    key = next(key for key in tensors if ".quant_state." in key)
    tensors[key] = tensors[key][:-3].clone()
    with pytest.raises(InvalidCheckpoint, match="quant_state"):
        take_nf4(checkpoint(tmp_path, tensors), NAME, SHAPE)


def test_what_we_store_is_read_by_us_and_by_bitsandbytes(tmp_path: Path) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = encode_linear(NAME, weight)
    nested = nest(plain.absmax)
    tensors = stored_tensors(NAME, plain, nested, torch.float32)
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    assert specs == stored_specs(NAME, SHAPE)

    source = checkpoint(tmp_path, tensors)
    ours = nf4.dequantize(take_nf4(source, NAME, SHAPE))
    source.check_all_taken()
    companions = {name.removeprefix(f"{NAME}."): t for name, t in tensors.items() if name != NAME}
    state = functional.QuantState.from_dict(companions, device=torch.device("cpu"))
    theirs = functional.dequantize_4bit(tensors[NAME], state)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    expected = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")[0]
    assert torch.equal(tensors[NAME], expected)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2, 96), "96 columns, no multiple of 64"),
        (torch.full((2, 64), float("nan")), "contains NaN or infinity"),
    ],
    ids=["columns", "nan"],
)
def test_what_nf4_cannot_hold_is_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises((InvalidCheckpoint, UnsupportedModel), match=f"{NAME} (has )?{message}"):
        encode_linear(NAME, weight)
