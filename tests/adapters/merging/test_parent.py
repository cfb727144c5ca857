"""A parent's deltas equal what PEFT's formulas say, and nothing but plain LoRA passes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.delta import concatenate, inner_product
from multiflora.adapters.merging.parent import Parent, widest
from multiflora.adapters.peft_format import PREFIX

Q = "model.layers.0.self_attn.q_proj"


def test_a_delta_is_scale_times_b_times_a(write_adapter: Callable[..., Path]) -> None:
    path = write_adapter(rank=4, use_rslora=True, alpha_pattern={"down_proj": 3})
    tensors = load_file(path / "adapter_model.safetensors")
    with Parent(path) as parent:
        for module, alpha in ((Q, 8), ("model.layers.1.mlp.down_proj", 3)):
            a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
            expected = alpha / math.sqrt(4) * (b @ a)
            torch.testing.assert_close(parent.delta(module).dense(), expected)


def test_inner_products_and_sums_need_no_dense_matrix(write_adapter: Callable[..., Path]) -> None:
    with Parent(write_adapter("a", rank=4)) as one, Parent(write_adapter("b", rank=2)) as two:
        left, right = one.delta(Q), two.delta(Q)
    expected = (left.dense().double() * right.dense().double()).sum()
    assert inner_product(left, right) == pytest.approx(float(expected), rel=1e-5)
    total = concatenate([left, right.scaled(-0.5)])
    torch.testing.assert_close(total.dense(), left.dense() - 0.5 * right.dense())


def test_a_tensor_that_is_not_plain_lora_is_refused(write_adapter: Callable[..., Path]) -> None:
    name = f"{PREFIX}{Q}.lora_magnitude_vector"
    path = write_adapter(edit=lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(AdapterRejected, match="only plain LoRA"):
        Parent(path)


def test_a_rank_that_the_config_denies_is_refused(write_adapter: Callable[..., Path]) -> None:
    with pytest.raises(AdapterRejected, match="the config says rank 4"):
        Parent(write_adapter(rank=2, edit=lambda tensors: None, r=4))


def test_an_adapter_with_nan_is_refused_when_read(write_adapter: Callable[..., Path]) -> None:
    name = f"{PREFIX}{Q}.lora_B.weight"
    path = write_adapter(edit=lambda tensors: tensors[name].fill_(float("nan")))
    with Parent(path) as parent, pytest.raises(AdapterRejected, match="NaN"):
        parent.delta(Q)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is set: DoRA rescales"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
    ],
)
def test_a_parent_that_is_no_delta_is_refused_with_the_reason(
    write_adapter: Callable[..., Path], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AdapterRejected, match=reason):
        Parent(write_adapter(**changes))


def test_the_widest_dtype_holds_all_values() -> None:
    assert widest([torch.bfloat16, torch.bfloat16]) == torch.bfloat16
    assert widest([torch.bfloat16, torch.float16]) == torch.float32
    assert widest([torch.float16, torch.float32]) == torch.float32
