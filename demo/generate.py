"""Greedy answers to many prompts at once. Knows models and tokenizers, not tasks."""

from collections.abc import Sequence
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 48


@torch.inference_mode()
def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    batch_size: int = 128,
) -> list[str]:
    """Return the greedy answer to each prompt, asked as a user's only message."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    result = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = _answer_batch(model, tokenizer, [prompts[index] for index in chosen])
        for index, text in zip(chosen, texts, strict=True):
            result[index] = text
    return result


def _answer_batch(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(
        cast(list[str], rendered),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
    )
    width = inputs["input_ids"].shape[1]
    output = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
