"""The Mistral family: Llama without biases, with one sliding window on every layer."""

from .config import ModelConfig
from .hf_config import HfConfig
from .hf_decoder import read_decoder

ARCHITECTURE = "MistralForCausalLM"

# What transformers assumes where config.json is silent.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read_config(config: HfConfig) -> ModelConfig:
    """A null ``sliding_window`` is full attention; an absent one is 4096."""
    config.only("layer_types", None)
    window = config.integer_or("sliding_window", 0) or None
    return read_decoder(
        config, family="mistral", windows=(window,) * config.integer("num_hidden_layers")
    )
