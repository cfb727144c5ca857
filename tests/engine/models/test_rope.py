import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from multiflora.engine.models.config import RopeConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.rope import rope_tables

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-factor": YARN | {"attention_factor": 1.25},
    "yarn-mscale": YARN | {"mscale": 0.8, "mscale_all_dim": 0.6},
    "yarn-betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
}


def their_tables(config: Any, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(max_len)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


def saved_config(folder: Path, **settings: Any) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        architectures=["LlamaForCausalLM"],
        **{"max_position_embeddings": 1024, **settings},
    )
    config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("max_len", [512, 2048], ids=["within", "beyond"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_tables_equal_transformers(tmp_path: Path, kind: str, max_len: int) -> None:
    theirs = saved_config(tmp_path, rope_parameters={"rope_theta": 5e5, **SCALINGS[kind]})
    ours = load_model_config(tmp_path)
    cos, sin = rope_tables(
        ours.rope, head_dim=ours.head_dim, max_len=max_len, max_position=ours.max_position
    )

    expected_cos, expected_sin = their_tables(theirs, max_len)
    assert cos.shape == (max_len, ours.head_dim // 2)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos, expected_cos, rtol=0, atol=5e-6)
    torch.testing.assert_close(sin, expected_sin, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", SCALINGS)
def test_older_spelling_means_the_same(tmp_path: Path, kind: str) -> None:
    saved_config(tmp_path, rope_parameters={"rope_theta": 5e5, **SCALINGS[kind]})
    newer = load_model_config(tmp_path).rope

    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"]
    scaling = dict(SCALINGS[kind])
    scaling["type"] = scaling.pop("rope_type")
    path.write_text(json.dumps(values | {"rope_theta": 5e5, "rope_scaling": scaling}))

    assert load_model_config(tmp_path).rope == newer


def test_original_length_defaults_to_the_declared_one(tmp_path: Path) -> None:
    saved_config(tmp_path, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert load_model_config(tmp_path).rope.original_max_position == 1024


def test_context_may_reach_as_far_as_the_scaling(tmp_path: Path) -> None:
    saved_config(tmp_path, max_position_embeddings=256, rope_scaling=YARN)
    config = load_model_config(tmp_path)
    assert (config.max_position, config.max_context) == (256, 1024)


def test_dynamic_scaling_changes_nothing_within_the_declared_length() -> None:
    dynamic = RopeConfig(kind="dynamic", factor=4.0)
    plain = RopeConfig()
    for served in (16, 64):
        ours = rope_tables(dynamic, head_dim=32, max_len=served, max_position=64)
        expected = rope_tables(plain, head_dim=32, max_len=served, max_position=64)
        assert torch.equal(ours[0], expected[0])


def test_dynamic_scaling_is_one_table_for_the_served_length() -> None:
    rope = RopeConfig(kind="dynamic", factor=2.0)
    cos, _ = rope_tables(rope, head_dim=32, max_len=128, max_position=64)
    plain, _ = rope_tables(RopeConfig(), head_dim=32, max_len=128, max_position=64)
    assert not torch.equal(cos[:64], plain[:64])
