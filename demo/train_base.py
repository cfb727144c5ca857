"""Trains the demo base from nothing. A killed run resumes where its last checkpoint stood.

Every batch is a function of the seed and its number, so a resumed run sees what an uninterrupted
one would have seen. The last third rounds the weights to NF4 in each forward pass, so that
quantizing the finished model changes little.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import IGNORED, Batch, Batcher
from .clock import record_seconds
from .corpus import BATCHES_PER_GROUP, base_group
from .generate import answers
from .nf4 import RoundedForward
from .recipe import BaseRecipe
from .tasks import OPEN_TASKS, TASKS, draw
from .tokenizer import MAX_POSITIONS

logger = logging.getLogger(__name__)


def train_base(tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, work: Path) -> Path:
    """Train to the end, from the last checkpoint in `work` if there is one; return its folder."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(base_config(tokenizer)).float()
    optimizer = base_optimizer(model, recipe.peak_rate)
    first, spent = _resume(model, optimizer, work)
    batches = base_batches(tokenizer, recipe, first_group=first // BATCHES_PER_GROUP)
    started, loss_sum = time.monotonic() - spent, 0.0
    for step in range(first, recipe.num_steps):
        _set_rate(optimizer, recipe.rate(step))
        rounding = RoundedForward(model.model) if recipe.rounds(step) else nullcontext()
        with rounding:
            loss = answer_loss(model, next(batches))
            loss.backward()
        take_step(model, optimizer)
        loss_sum += float(loss.detach())
        done = step + 1
        seconds = time.monotonic() - started
        if done % 100 == 0:
            logger.info("step %d loss %.4f at %.0f s", done, loss_sum / 100, seconds)
            loss_sum = 0.0
        if done % recipe.checkpoint_every == 0:
            _save(model, optimizer, done, seconds, work)
        if done % recipe.check_every == 0:
            _check(model, tokenizer, recipe)
    model.save_pretrained(work / "base")
    record_seconds(work, "base", time.monotonic() - started)
    return work / "base"


def base_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )


def base_optimizer(model: nn.Module, rate: float) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def base_batches(
    tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, *, first_group: int = 0
) -> Iterator[Batch]:
    """Yield batches for ever, group by group."""
    batcher = Batcher(tokenizer, batch_size=recipe.batch_size)
    for number in count(first_group):
        yield from batcher(base_group(recipe, number))


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over answer tokens; logits are made for those alone."""
    hidden = model.model(batch.tokens, use_cache=False).last_hidden_state  # [B, T, H]
    labels = batch.labels[:, 1:]
    chosen = labels != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][chosen]), labels[chosen])


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _check(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe) -> None:
    random = Random(0)
    model.eval()
    scores: dict[str, float] = {}
    for task in TASKS:
        held_out = task in OPEN_TASKS
        asked = [draw(task, random, held_out=held_out) for _ in range(recipe.check_prompts)]
        given = answers(model, tokenizer, [example.prompt for example in asked])
        right = sum(text == example.answer for text, example in zip(given, asked, strict=True))
        scores[task] = right / len(asked)
    model.train()
    logger.info("check %s", json.dumps(scores))


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, work: Path
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    part = work / "base.part"
    torch.save(state, part)
    part.replace(work / "base.state")


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, work: Path) -> tuple[int, float]:
    """Load the last checkpoint, if any; return the steps done and the seconds they took."""
    path = work / "base.state"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resumed at step %d", state["step"])
    return state["step"], state["seconds"]
