"""Writes the trained base as a pre-quantized NF4 checkpoint, and reads it back as plain weights."""

from pathlib import Path
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


def write_base(source: Path, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Quantize every linear of the decoder with bitsandbytes; the embeddings stay bfloat16."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head"],
    )
    model = LlamaForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    _keep_ordinary_format(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def read_base(path: Path, *, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Load the shipped checkpoint and replace each NF4 linear by a plain one of equal weights."""
    model = LlamaForCausalLM.from_pretrained(path, device_map="cpu")
    _keep_ordinary_format(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _plain(module))
    plain = LlamaForCausalLM(_without_quantization(model.config))
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    nn.Module.to(plain, dtype)
    return plain.eval()


def _keep_ordinary_format(model: nn.Module) -> None:
    """Stop bitsandbytes from packing weights for the CPU's bfloat16 unit when in eval mode."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _plain(module: Linear4bit) -> nn.Linear:
    weight = cast(Any, module.weight)
    exact = dequantize_4bit(weight.data, weight.quant_state)
    linear = nn.Linear(exact.shape[1], exact.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(exact, requires_grad=False)
    return linear


def _without_quantization(config: LlamaConfig) -> LlamaConfig:
    fields = config.to_dict()
    fields.pop("quantization_config", None)
    return LlamaConfig(**fields)
