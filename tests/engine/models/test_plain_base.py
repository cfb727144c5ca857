"""Every tensor of a checkpoint is there, under transformers' names, as an engine holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiflora.adapters.tensor_file import TensorSpec
from multiflora.engine.config import BaseConfig
from multiflora.engine.errors import InvalidCheckpoint
from multiflora.engine.models.load import load_base
from multiflora.engine.models.plain_base import PlainBase
from multiflora.kernels import torch_ops
from multiflora.kernels.ops import Nf4Weight

DEMO = Path("engine/demo/base")
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64, "attention_bias": True},
}
SaveModel = Callable[..., Path]


@pytest.mark.parametrize("family", VARIANTS)
def test_names_and_shapes_are_those_of_transformers(save_model: SaveModel, family: str) -> None:
    folder = save_model(family, **VARIANTS[family])
    base = PlainBase(folder, quantized=False)
    found = {name: base.dense(name) for name in base.dense_names()}
    found |= {f"{target.path}.weight": base.linear(target) for target in base.targets}
    base.check_all_read()
    stored = load_file(folder / "model.safetensors")
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantized_linears_are_those_that_the_engine_loads(
    save_model: SaveModel, family: str
) -> None:
    assert_equals_engine(save_model(family, dtype=torch.bfloat16))


def test_a_prequantized_checkpoint_is_decoded_as_the_engine_decodes_it() -> None:
    assert_equals_engine(DEMO)


def assert_equals_engine(folder: Path) -> None:
    base = PlainBase(folder)
    weights = load_base(
        folder,
        base.config,
        BaseConfig(model=str(folder)),
        ops=torch_ops,
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_dir=None,
        progress=lambda *_: None,
    )
    linears = {target.path: base.linear(target) for target in base.targets}
    for projection in base.config.projections():
        packed = getattr(weights.layers[projection.layer], projection.kind)
        assert isinstance(packed, Nf4Weight)
        expected = torch_ops.unpack_nf4(packed, torch.float32)
        found = torch.cat([linears[part.path] for part in projection.slices])
        assert torch.equal(found, expected), projection


@pytest.mark.parametrize("folder", [DEMO, None], ids=["stored", "made"])
def test_nf4_tensors_are_as_announced(folder: Path | None, save_model: SaveModel) -> None:
    base = PlainBase(folder or save_model())
    target = base.targets[0]
    tensors = base.nf4_tensors(target, torch.bfloat16)
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    assert specs == base.nf4_specs(target)


def test_a_tied_head_that_differs_is_refused(save_model: SaveModel) -> None:
    folder = save_model(tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"lm_head\.weight differs"):
        PlainBase(folder).dense("model.embed_tokens.weight")


def test_a_head_stored_alone_is_the_embedding(save_model: SaveModel) -> None:
    folder = save_model(tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(PlainBase(folder).dense("model.embed_tokens.weight"), table)


def test_a_surplus_tensor_is_named(save_model: SaveModel) -> None:
    folder = save_model()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.weight": torch.ones(2)}, folder / "model.safetensors")
    base = PlainBase(folder)
    for name in base.dense_names():
        base.dense(name)
    for target in base.targets:
        base.linear(target)
    with pytest.raises(InvalidCheckpoint, match=r"score\.weight"):
        base.check_all_read()
