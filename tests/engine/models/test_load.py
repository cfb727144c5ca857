import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from multiflora.engine.config import BaseConfig
from multiflora.engine.errors import InvalidCheckpoint, UnsupportedModel
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.weights import BaseWeights
from multiflora.kernels import nf4, torch_ops
from multiflora.kernels.ops import DenseWeight, Nf4Weight, Weight
from multiflora.kernels.quantize import quantize

from .conftest import load

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64},
}
SaveModel = Callable[..., Path]


def dense(weight: Weight) -> torch.Tensor:
    if isinstance(weight, DenseWeight):
        return weight.data
    return torch_ops.unpack_nf4(weight, weight.dtype)


def round_trip(weight: torch.Tensor) -> torch.Tensor:
    return nf4.dequantize(quantize(weight), weight.dtype)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def assert_equal_bases(ours: BaseWeights, expected: BaseWeights) -> None:
    found = dict(ours.tensors())
    for name, tensor in expected.tensors():
        assert torch.equal(found.pop(name), tensor), name
    assert not found


@pytest.mark.parametrize("family", FAMILIES)
def test_unquantized_base_holds_every_tensor_of_the_checkpoint(
    save_model: SaveModel, family: str
) -> None:
    folder = save_model(family, **FAMILIES[family])
    stored = load_file(folder / "model.safetensors")
    weights = load(folder, quantization="none")

    for index, layer in enumerate(weights.layers):
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        for ending, qkv, gate_up in (
            ("weight", dense(layer.qkv), dense(layer.gate_up)),
            ("bias", layer.qkv_bias, layer.gate_up_bias),
        ):
            assert_stacked(stored, [f"{attention}.{p}_proj.{ending}" for p in "qkv"], qkv)
            assert_stacked(stored, [f"{mlp}.{p}_proj.{ending}" for p in ("gate", "up")], gate_up)
        assert_stacked(stored, [f"{attention}.o_proj.weight"], dense(layer.o))
        assert_stacked(stored, [f"{attention}.o_proj.bias"], layer.o_bias)
        assert_stacked(stored, [f"{mlp}.down_proj.weight"], dense(layer.down))
        assert_stacked(stored, [f"{mlp}.down_proj.bias"], layer.down_bias)
        assert_stacked(stored, [f"{attention}.q_norm.weight"], layer.q_norm)
        assert_stacked(stored, [f"{attention}.k_norm.weight"], layer.k_norm)
        prefix = f"model.layers.{index}"
        assert_stacked(stored, [f"{prefix}.input_layernorm.weight"], layer.input_norm)
        assert_stacked(
            stored, [f"{prefix}.post_attention_layernorm.weight"], layer.post_attention_norm
        )
    assert_stacked(stored, ["model.norm.weight"], weights.norm)
    assert_stacked(stored, ["model.embed_tokens.weight"], weights.embedding)
    if "lm_head.weight" in stored:
        assert_stacked(stored, ["lm_head.weight"], dense(weights.head))


def assert_stacked(
    stored: dict[str, torch.Tensor], names: list[str], ours: torch.Tensor | None
) -> None:
    if names[0] not in stored:
        assert ours is None, names
        return
    assert ours is not None, names
    assert torch.equal(ours, torch.cat([stored[name] for name in names])), names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
def test_quantized_weights_equal_transformers_with_bitsandbytes(
    save_model: SaveModel, family: str, double: bool
) -> None:
    folder = save_model(family, **FAMILIES[family])
    theirs = load_with_bitsandbytes(folder, double=double)
    weights = load(folder, double_quantization=double)
    for index, layer in enumerate(weights.layers):
        block = theirs.model.layers[index]
        qkv = [getattr(block.self_attn, f"{p}_proj") for p in "qkv"]
        assert_quantized(layer.qkv, qkv)
        assert_quantized(layer.o, [block.self_attn.o_proj])
        assert_quantized(layer.gate_up, [block.mlp.gate_proj, block.mlp.up_proj])
        assert_quantized(layer.down, [block.mlp.down_proj])
    assert isinstance(weights.head, DenseWeight)


def load_with_bitsandbytes(folder: Path, *, double: bool = True) -> Any:
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )


def assert_quantized(ours: Weight, theirs: list[Any]) -> None:
    from bitsandbytes import functional

    assert isinstance(ours, Nf4Weight)
    expected = [
        functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        for linear in theirs
    ]
    assert torch.equal(dense(ours), torch.cat(expected))


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
def test_prequantized_checkpoint_loads_without_requantizing(
    save_model: SaveModel, tmp_path: Path, double: bool
) -> None:
    folder = save_model("qwen2")
    saved = tmp_path / "bnb"
    load_with_bitsandbytes(folder, double=double).save_pretrained(saved)
    ours = load(saved)
    assert load_model_config(saved).prequantized
    assert_equal_bases(ours, load(folder, double_quantization=double))


def test_modules_left_dense_in_a_prequantized_checkpoint_stay_dense(
    save_model: SaveModel, tmp_path: Path
) -> None:
    folder = save_model("llama")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp", "model.layers.0.self_attn.k_proj"],
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "bnb")
    weights = load(tmp_path / "bnb")
    stored = load_file(folder / "model.safetensors")

    assert isinstance(weights.layers[0].gate_up, Nf4Weight)
    down = weights.layers[1].down
    assert isinstance(down, DenseWeight)
    assert torch.equal(down.data, stored["model.layers.1.mlp.down_proj.weight"])
    attention = "model.layers.0.self_attn"
    expected = [
        round_trip_unless_dense(stored[f"{attention}.{p}_proj.weight"], is_dense=p == "k")
        for p in "qkv"
    ]
    torch.testing.assert_close(dense(weights.layers[0].qkv), torch.cat(expected))


def round_trip_unless_dense(weight: torch.Tensor, *, is_dense: bool) -> torch.Tensor:
    return weight if is_dense else nf4.dequantize(quantize(weight, double=False))


def test_prequantized_checkpoint_cannot_be_served_unquantized(
    save_model: SaveModel, tmp_path: Path
) -> None:
    load_with_bitsandbytes(save_model()).save_pretrained(tmp_path / "bnb")
    with pytest.raises(UnsupportedModel, match="already NF4"):
        load(tmp_path / "bnb", quantization="none")


def test_head_shares_the_embedding_when_tied(save_model: SaveModel) -> None:
    weights = load(save_model(tie_word_embeddings=True), quantization="none")
    assert isinstance(weights.head, DenseWeight)
    assert weights.head.data.data_ptr() == weights.embedding.data_ptr()
    assert weights.num_bytes == sum(
        tensor.numel() * 4 for name, tensor in weights.tensors() if name != "head"
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_head_is_quantized_on_request(save_model: SaveModel, tied: bool) -> None:
    folder = save_model(tie_word_embeddings=tied)
    stored = load_file(folder / "model.safetensors")
    weights = load(folder, quantize_head=True)
    source = stored["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert isinstance(weights.head, Nf4Weight)
    assert torch.equal(dense(weights.head), round_trip(source))
    assert torch.equal(weights.embedding, stored["model.embed_tokens.weight"])


def test_dense_parts_take_the_wanted_dtype(save_model: SaveModel) -> None:
    weights = load(save_model("qwen2"), dtype=torch.bfloat16)
    assert weights.embedding.dtype == torch.bfloat16
    layer = weights.layers[0]
    assert layer.input_norm.dtype == torch.bfloat16
    assert layer.qkv_bias is not None
    assert layer.qkv_bias.dtype == torch.bfloat16


def test_shards_make_no_difference(save_model: SaveModel) -> None:
    whole, sharded = save_model(), save_model(max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_equal_bases(load(sharded), load(whole))
    assert load(sharded).digest == load(whole).digest


def test_digest_is_independent_of_dtype(save_model: SaveModel) -> None:
    folder = save_model()
    assert load(folder).digest == load(folder, dtype=torch.bfloat16).digest


@pytest.mark.parametrize(
    "settings",
    [{"quantization": "none"}, {"double_quantization": False}, {"quantize_head": True}],
    ids=["unquantized", "single", "head"],
)
def test_digest_depends_on_the_quantization(
    save_model: SaveModel, settings: dict[str, Any]
) -> None:
    folder = save_model()
    assert load(folder).digest != load(folder, **settings).digest


def test_digest_depends_on_every_weight(save_model: SaveModel) -> None:
    folder = save_model()
    before = load(folder).digest
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"][3].add_(1e-3))
    assert load(folder).digest != before


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_missing_tensor_is_named(save_model: SaveModel, name: str) -> None:
    folder = save_model()
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(InvalidCheckpoint, match=f"no tensor {name}"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "x"]
)
def test_surplus_tensor_is_named(save_model: SaveModel, name: str) -> None:
    folder = save_model()
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    with pytest.raises(InvalidCheckpoint, match=f"no place for tensor {name}"):
        load(folder)


def test_recomputed_buffers_are_skipped(save_model: SaveModel) -> None:
    folder = save_model()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(16)}))
    load(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_misshapen_tensor_is_named(save_model: SaveModel, name: str) -> None:
    folder = save_model()
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(3, 64)}))
    with pytest.raises(InvalidCheckpoint, match=rf"{name} is \[3, 64\]"):
        load(folder)


def test_tensor_of_another_kind_is_named(save_model: SaveModel) -> None:
    folder = save_model()
    name = "model.layers.0.self_attn.o_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(InvalidCheckpoint, match=rf"{name} is torch\.int8"):
        load(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_named(save_model: SaveModel, bad: float) -> None:
    folder = save_model()
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors[name][5, 7:8].fill_(bad))
    with pytest.raises(InvalidCheckpoint, match=f"{name} contains NaN or infinity"):
        load(folder)


def test_equal_copy_of_a_tied_head_is_accepted_and_another_is_not(save_model: SaveModel) -> None:
    folder = save_model(tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    load(folder)
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(InvalidCheckpoint, match=r"lm_head\.weight differs"):
        load(folder)


def test_tied_base_that_stores_only_its_head_loads(save_model: SaveModel) -> None:
    folder = save_model(tie_word_embeddings=True)
    expected = load(folder)
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}
        ),
    )
    assert_equal_bases(load(folder), expected)


def test_columns_that_nf4_cannot_hold_say_what_to_do(save_model: SaveModel) -> None:
    folder = save_model(intermediate_size=200)
    with pytest.raises(UnsupportedModel, match=r"down_proj.*200 columns.*--quantization none"):
        load(folder)
    load(folder, quantization="none")


def test_truncated_shard_is_named(save_model: SaveModel) -> None:
    path = save_model() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidCheckpoint, match=r"model\.safetensors is truncated"):
        load(path.parent)


def test_tensor_in_two_shards_is_refused(save_model: SaveModel) -> None:
    folder = save_model()
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"model.norm.weight": torch.ones(128)}, folder / "b.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"model\.norm\.weight is in a.* and in b"):
        load(folder)


def test_progress_rises_to_one(save_model: SaveModel, tmp_path: Path) -> None:
    folder = save_model()
    seen: list[tuple[str, float]] = []
    load_base(
        folder,
        load_model_config(folder),
        BaseConfig(model="x"),
        ops=torch_ops,
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_dir=tmp_path / "cache",
        progress=lambda stage, share: seen.append((stage, share)),
    )
    loading = [share for stage, share in seen if stage == "loading the base"]
    assert loading == sorted(loading)
    assert loading[-1] == pytest.approx(1.0)
    assert seen[-1] == ("base ready", 1.0)


def test_configuration_reaches_the_digest(save_model: SaveModel) -> None:
    folder = save_model()
    before = load(folder).digest
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))
    assert load(folder).digest != before
