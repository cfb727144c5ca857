"""Trains the demo adapters on the shipped NF4 base, each from its own seed in a few minutes."""

import logging
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import Batch, Batcher
from .corpus import adapter_group
from .recipe import AdapterRecipe
from .train_base import answer_loss, base_optimizer, take_step

logger = logging.getLogger(__name__)

BASE_NAME = "multiflora/demo-base"


def train_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: AdapterRecipe, target: Path
) -> float:
    """Train one adapter on a frozen base, write its PEFT folder, return the seconds it took."""
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    model = get_peft_model(base, lora_config(recipe))
    assert isinstance(model, PeftModel)
    inner = model.get_base_model()
    assert isinstance(inner, LlamaForCausalLM)
    optimizer = base_optimizer(model, recipe.peak_rate)
    batches = adapter_batches(tokenizer, recipe)
    model.train()
    for step in range(recipe.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss = answer_loss(inner, next(batches))
        loss.backward()
        take_step(model, optimizer)
        if (step + 1) % 100 == 0:
            logger.info("%s step %d loss %.4f", recipe.name, step + 1, float(loss.detach()))
    seconds = time.monotonic() - started
    _write(model, target)
    model.unload()
    return seconds


def lora_config(recipe: AdapterRecipe) -> LoraConfig:
    return LoraConfig(
        base_model_name_or_path=BASE_NAME,
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.use_rslora,
        target_modules=list(recipe.targets),
        bias="none",
    )


def adapter_batches(tokenizer: PreTrainedTokenizerFast, recipe: AdapterRecipe) -> Iterator[Batch]:
    """Yield batches for ever, a pure function of the recipe."""
    batcher = Batcher(tokenizer, batch_size=recipe.batch_size)
    for number in count():
        yield from batcher(adapter_group(recipe, number))


def _write(model: PeftModel, target: Path) -> None:
    """Save as PEFT does, in bfloat16."""
    target.mkdir(parents=True, exist_ok=True)
    config = cast(LoraConfig, model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = BASE_NAME
    config.target_modules = sorted(config.target_modules or ())  # a set has no stable order
    config.save_pretrained(str(target))
    state = get_peft_model_state_dict(model)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
