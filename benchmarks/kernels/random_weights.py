"""Random weights and adapters made on the device: shapes of large models without their bytes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.weights import BaseWeights, LayerWeights
from multiflora.kernels.ops import DenseWeight, LoraFactors, LoraPart, Nf4Weight
from multiflora.kernels.triton_ops.nf4_layout import LAYOUT, TiledShape

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    max_position=8_192,
)


def random_nf4(out: int, into: int, dtype: torch.dtype, device: torch.device) -> Nf4Weight:
    """A packed matrix whose decoded weights have a standard deviation of about 0.02."""
    shape = TiledShape(out, into)
    size = (shape.num_blocks, shape.num_groups, shape.rows)
    codes = torch.randint(-(2**15), 2**15, (*size, 16), dtype=torch.int16, device=device)
    absmax = 0.03 + 0.01 * torch.rand(size, dtype=torch.float16, device=device)
    return Nf4Weight(LAYOUT, {"codes": codes, "absmax": absmax}, out, into, dtype)


def random_dense(
    *size: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0
) -> Tensor:
    return scale * torch.randn(*size, dtype=dtype, device=device)


def random_factors(
    widths: Sequence[int], into: int, rank: int, dtype: torch.dtype, device: torch.device
) -> LoraFactors:
    """Every slice of a projection at ``rank``."""
    parts = tuple(
        LoraPart(
            random_dense(rank, width, dtype=dtype, device=device, scale=0.02),
            place * rank,
            sum(widths[:place]),
            1.0,
        )
        for place, width in enumerate(widths)
    )
    a = random_dense(rank * len(widths), into, dtype=dtype, device=device, scale=0.02)
    return LoraFactors(a, parts)


def random_base(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> BaseWeights:
    layers = tuple(_layer(config, dtype, device) for _ in range(config.num_layers))
    size = (config.vocab_size, config.hidden_size)
    return BaseWeights(
        embedding=random_dense(*size, dtype=dtype, device=device, scale=0.02),
        layers=layers,
        norm=torch.ones(config.hidden_size, dtype=dtype, device=device),
        head=DenseWeight(random_dense(*size, dtype=dtype, device=device, scale=0.02)),
        digest="random",
    )


def _layer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LayerWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    ones = torch.ones(hidden, dtype=dtype, device=device)
    return LayerWeights(
        qkv=random_nf4(config.q_size + 2 * config.kv_size, hidden, dtype, device),
        qkv_bias=None,
        o=random_nf4(hidden, config.q_size, dtype, device),
        o_bias=None,
        gate_up=random_nf4(2 * inner, hidden, dtype, device),
        gate_up_bias=None,
        down=random_nf4(hidden, inner, dtype, device),
        down_bias=None,
        input_norm=ones,
        post_attention_norm=ones,
        q_norm=None,
        k_norm=None,
    )
