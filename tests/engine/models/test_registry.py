import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from multiflora.engine.errors import InvalidCheckpoint, UnsupportedModel
from multiflora.engine.models.config import RopeConfig
from multiflora.engine.models.registry import load_model_config

CLASSES = {
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MistralForCausalLM": transformers.MistralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config,
    "Qwen3ForCausalLM": transformers.Qwen3Config,
}


def write_config(folder: Path, **values: Any) -> Path:
    values = {"architectures": ["LlamaForCausalLM"], **values}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("architecture", CLASSES)
def test_absent_keys_take_transformers_defaults(tmp_path: Path, architecture: str) -> None:
    theirs = CLASSES[architecture]()
    ours = load_model_config(write_config(tmp_path, architectures=[architecture]))

    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    head_dim = getattr(theirs, "head_dim", None)
    assert ours.head_dim == (head_dim or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.windows == _their_windows(theirs)


@pytest.mark.parametrize("architecture", CLASSES)
def test_configs_saved_by_transformers_are_read_back(tmp_path: Path, architecture: str) -> None:
    settings = {"rope_theta": 50_000.0, "tie_word_embeddings": True, "num_hidden_layers": 3}
    theirs = CLASSES[architecture](**settings, architectures=[architecture], dtype="float16")
    theirs.save_pretrained(tmp_path)
    ours = load_model_config(tmp_path)

    assert ours.rope.theta == 50_000.0
    assert ours.tie_embeddings
    assert ours.checkpoint_dtype == "float16"
    assert len(ours.windows) == 3


def test_llama_biases_cover_all_projections_they_name(tmp_path: Path) -> None:
    config = load_model_config(write_config(tmp_path, attention_bias=True, mlp_bias=False))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, False)


def test_qwen2_biases_cover_only_qkv(tmp_path: Path) -> None:
    config = load_model_config(write_config(tmp_path, architectures=["Qwen2ForCausalLM"]))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, False, False)


def test_qwen3_has_head_norms_and_its_own_head_size(tmp_path: Path) -> None:
    folder = write_config(
        tmp_path,
        architectures=["Qwen3ForCausalLM"],
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    config = load_model_config(folder)
    assert config.qk_norm
    assert config.head_dim == 128
    assert config.q_size == 2048


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, (4096, 4096), id="absent"),
        pytest.param({"sliding_window": None}, (None, None), id="null"),
        pytest.param({"sliding_window": 32}, (32, 32), id="given"),
    ],
)
def test_mistral_windows(tmp_path: Path, settings: dict[str, Any], expected: tuple) -> None:
    folder = write_config(
        tmp_path, architectures=["MistralForCausalLM"], num_hidden_layers=2, **settings
    )
    assert load_model_config(folder).windows == expected


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"use_sliding_window": False, "sliding_window": 8}, id="off"),
        pytest.param(
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, id="upper"
        ),
        pytest.param(
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            id="layer-types",
        ),
    ],
)
def test_qwen_windows_equal_transformers(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    theirs = CLASSES[architecture](num_hidden_layers=3, **settings)
    folder = write_config(tmp_path, architectures=[architecture], num_hidden_layers=3, **settings)
    assert load_model_config(folder).windows == _their_windows(theirs)


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [128001, 128009]}')
    assert load_model_config(tmp_path).eos_token_ids == (128001, 128009)


def test_end_tokens_fall_back_to_the_model_config(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=7)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert load_model_config(tmp_path).eos_token_ids == (7,)


def test_older_dtype_spelling_is_read(tmp_path: Path) -> None:
    assert load_model_config(write_config(tmp_path, torch_dtype="float16")).checkpoint_dtype == (
        "float16"
    )


def test_bitsandbytes_nf4_is_recognized(tmp_path: Path) -> None:
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    }
    config = load_model_config(write_config(tmp_path, quantization_config=settings))
    assert config.prequantized


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"quant_method": "awq"}, "awq", id="awq"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8-bit", id="int8"),
        pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, "fp4", id="fp4"),
    ],
)
def test_other_quantizations_are_refused(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        load_model_config(write_config(tmp_path, quantization_config=settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"hidden_act": "gelu"}, "hidden_act", id="activation"),
        pytest.param({"pretraining_tp": 2}, "pretraining_tp", id="tensor-parallel-sums"),
        pytest.param({"partial_rotary_factor": 0.5}, "partial_rotary_factor", id="partial-rotary"),
        pytest.param({"rope_scaling": {"type": "longrope", "factor": 2}}, "longrope", id="rope"),
        pytest.param(
            {"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}},
            "mrope_section",
            id="rope-key",
        ),
        pytest.param({"dtype": "float8_e4m3fn"}, "float8_e4m3fn", id="dtype"),
        pytest.param({"auto_map": {"AutoConfig": "x.Y"}}, "auto_map", id="remote-code"),
        pytest.param({"architectures": ["GemmaForCausalLM"]}, "Qwen3ForCausalLM", id="listed"),
        pytest.param({"architectures": None}, "Qwen3ForCausalLM", id="no-architecture"),
        pytest.param(
            {"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types",
            id="mixed-mistral",
        ),
        pytest.param(
            {
                "architectures": ["Qwen2ForCausalLM"],
                "num_hidden_layers": 1,
                "layer_types": ["linear_attention"],
            },
            "linear_attention",
            id="layer-type",
        ),
    ],
)
def test_what_would_change_the_maths_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        load_model_config(write_config(tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"hidden_size": "big"}, "hidden_size", id="text"),
        pytest.param({"num_hidden_layers": 0}, "num_hidden_layers", id="zero"),
        pytest.param({"vocab_size": True}, "vocab_size", id="boolean"),
        pytest.param({"rms_norm_eps": 0}, "rms_norm_eps", id="epsilon"),
        pytest.param({"num_key_value_heads": 5}, "5 key-value heads", id="heads"),
        pytest.param({"head_dim": 33}, "head_dim", id="odd-head"),
        pytest.param({"tie_word_embeddings": "yes"}, "tie_word_embeddings", id="flag"),
        pytest.param({"eos_token_id": "</s>"}, "eos_token_id", id="token"),
        pytest.param({"rope_scaling": {"type": "linear"}}, "factor", id="no-factor"),
        pytest.param({"rope_scaling": [1]}, "rope", id="rope-list"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=named):
        load_model_config(write_config(tmp_path, **settings))


@pytest.mark.parametrize("text", ["{", "[]", "\xff"], ids=["cut", "list", "not-utf8"])
def test_broken_json_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        load_model_config(tmp_path)


def test_folder_without_config_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"no config\.json"):
        load_model_config(tmp_path)


def _their_windows(config: Any) -> tuple[int | None, ...]:
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
