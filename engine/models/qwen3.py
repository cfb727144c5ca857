"""The Qwen3 family: RMS norms on the heads of q and k, a head size of its own, no biases."""

from .config import ModelConfig
from .hf_config import HfConfig
from .hf_decoder import read_decoder

ARCHITECTURE = "Qwen3ForCausalLM"

# What transformers assumes where config.json is silent.
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "head_dim": 128,
}


def read_config(config: HfConfig) -> ModelConfig:
    """``attention_bias`` adds biases to all four attention projections."""
    return read_decoder(
        config,
        family="qwen3",
        qk_norm=True,
        qkv_bias=config.flag("attention_bias"),
        o_bias=config.flag("attention_bias"),
        windows=config.sliding_windows(),
    )
