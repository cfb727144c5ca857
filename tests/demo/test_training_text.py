"""How a conversation becomes tokens and labels."""

from random import Random
from typing import cast

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from demo.batches import IGNORED, Batcher
from demo.chat import Conversation, render
from demo.corpus import Group, base_group
from demo.nf4 import RoundedForward, rounded
from demo.recipe import ADAPTERS, BaseRecipe
from demo.tasks import draw
from demo.tokenizer import train_tokenizer
from multiflora.kernels.nf4 import BLOCK_SIZE


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained("engine/demo/base")


def _conversation(system: str | None) -> Conversation:
    random = Random(3)
    examples = (draw("count", random), draw("compare", random))
    return Conversation(system, examples, tuple(example.answer for example in examples))


@pytest.mark.parametrize("system", [None, "Be brief."], ids=["without-system", "with-system"])
def test_training_text_is_what_the_chat_template_writes(
    tokenizer: PreTrainedTokenizerFast, system: str | None
) -> None:
    conversation = _conversation(system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for example, answer in zip(conversation.examples, conversation.answers, strict=True):
        messages.append({"role": "user", "content": example.prompt})
        messages.append({"role": "assistant", "content": answer})
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render(conversation)


def test_labels_are_the_answers_and_their_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _conversation("Be brief.")
    batcher = Batcher(tokenizer, batch_size=4)
    batch = next(batcher(Group([conversation], Random(0))))
    labelled = batch.labels[batch.labels != IGNORED]
    text = cast(str, tokenizer.decode(labelled))
    assert text == "".join(f"{answer}<|end|>" for answer in conversation.answers)
    assert torch.equal(labelled, batch.tokens[batch.labels != IGNORED])


def test_batches_of_a_group_hold_every_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    group = base_group(BaseRecipe(), 0)
    batches = list(Batcher(tokenizer, batch_size=32)(group))
    assert sum(len(batch.tokens) for batch in batches) == len(group.conversations)
    assert all(batch.tokens.shape == batch.labels.shape for batch in batches)


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("4670") == ["4", "6", "7", "0"]


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Grüße, 木 & 🌼!\n\tfin"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_shipped_tokenizer_is_what_the_recipe_trains(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    trained = train_tokenizer(BaseRecipe().seed)
    assert trained.get_vocab() == tokenizer.get_vocab()
    assert trained.chat_template == tokenizer.chat_template


def test_rounding_is_nf4_as_bitsandbytes_defines_it() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(8, 4 * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK_SIZE, quant_type="nf4")
    torch.testing.assert_close(rounded(weight), functional.dequantize_4bit(codes, state))


def test_rounding_lasts_for_the_forward_pass_alone() -> None:
    linear = torch.nn.Linear(BLOCK_SIZE, 4, bias=False)
    exact = linear.weight.detach().clone()
    with RoundedForward(torch.nn.Sequential(linear)):
        assert torch.equal(linear.weight, rounded(exact))
    assert torch.equal(linear.weight, exact)


def test_rates_rise_then_fall() -> None:
    for recipe in (BaseRecipe(), *ADAPTERS):
        rates = [recipe.rate(step) for step in range(recipe.num_steps)]
        assert max(rates) <= recipe.peak_rate
        assert 0 < rates[0] < max(rates)
        assert 0 < rates[-1] < 0.05 * recipe.peak_rate
