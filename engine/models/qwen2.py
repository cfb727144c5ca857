"""The Qwen2 and Qwen2.5 family: biases on q, k and v; sliding windows on the upper layers."""

from .config import ModelConfig
from .hf_config import HfConfig
from .hf_decoder import read_decoder

ARCHITECTURE = "Qwen2ForCausalLM"

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
}


def read_config(config: HfConfig) -> ModelConfig:
    """The biases are part of the architecture: no key switches them."""
    return read_decoder(config, family="qwen2", qkv_bias=True, windows=config.sliding_windows())
