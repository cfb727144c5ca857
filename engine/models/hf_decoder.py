"""The part of a Hugging Face config that every supported family shares."""

from ..errors import InvalidCheckpoint
from .config import ModelConfig
from .hf_config import HfConfig
from .hf_rope import read_rope


def read_decoder(
    config: HfConfig,
    *,
    family: str,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows: tuple[int | None, ...] | None = None,
) -> ModelConfig:
    """Build the `ModelConfig`; the arguments are what differs between families."""
    config.only("hidden_act", "silu")
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    num_kv_heads = config.integer_or("num_key_value_heads", num_heads)
    head_dim = config.integer_or("head_dim", hidden // num_heads)
    _check_heads(num_heads, num_kv_heads, head_dim)
    return ModelConfig(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps"),
        max_position=config.integer("max_position_embeddings"),
        rope=read_rope(config),
        tie_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=windows or (None,) * num_layers,
        eos_token_ids=config.token_ids("eos_token_id"),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        checkpoint_dtype=config.dtype(),
        prequantized=config.prequantized(),
    )


def _check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    if num_heads % num_kv_heads:
        raise InvalidCheckpoint(
            f"config.json: {num_heads} attention heads cannot share {num_kv_heads} key-value heads"
        )
    if head_dim % 2:
        raise InvalidCheckpoint(f"config.json: head_dim is {head_dim}; rotary needs an even number")
