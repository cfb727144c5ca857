"""The Llama family: 2, 3, 3.x and everything published under its architecture name."""

from .config import ModelConfig
from .hf_config import HfConfig
from .hf_decoder import read_decoder

ARCHITECTURE = "LlamaForCausalLM"

# What transformers assumes where config.json is silent.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read_config(config: HfConfig) -> ModelConfig:
    """Biases are optional: on all four attention projections, and on all of the MLP."""
    config.only("pretraining_tp", 1)
    return read_decoder(
        config,
        family="llama",
        qkv_bias=config.flag("attention_bias"),
        o_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
    )
