"""Answers end where they should, and count the tokens that were used."""

import pytest

from multiflora.engine.request import FinishReason
from multiflora.engine.text.answer_text import AnswerText, TextRules
from multiflora.engine.text.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(byte_level, write_folder):
    return load_tokenizer(write_folder(byte_level, eos_token="</s>"))


def test_events_of_any_size_give_the_same_text(tokenizer):
    tokens = tokenizer.encode("The quick brown fox 🙂")
    whole, single = AnswerText(tokenizer), AnswerText(tokenizer)

    text = whole.push(tokens, FinishReason.LENGTH)
    pieces = [single.push([token]) for token in tokens] + [single.push([], FinishReason.LENGTH)]

    assert text == "".join(pieces) == "The quick brown fox 🙂"
    assert whole.num_tokens == single.num_tokens == len(tokens)


def test_tokens_after_a_stop_string_are_not_counted(tokenizer):
    tokens = [token for char in "ab.cd" for token in tokenizer.encode(char)]
    answer = AnswerText(tokenizer, TextRules(stops=(".",)))

    assert answer.push(tokens) == "ab"
    assert answer.is_stopped
    assert answer.num_tokens == 3


def test_stop_strings_wait_for_min_tokens(tokenizer):
    tokens = [token for char in "a.b.c" for token in tokenizer.encode(char)]
    answer = AnswerText(tokenizer, TextRules(stops=(".",), min_tokens=2))

    assert answer.push(tokens) == "a.b"


def test_the_token_that_ends_an_answer_gives_no_text(tokenizer):
    tokens = tokenizer.encode("done!")
    answer = AnswerText(tokenizer, TextRules(end_tokens=frozenset(tokens[-1:])))

    assert answer.push(tokens, FinishReason.STOP) == tokenizer.decode(tokens[:-1])
    assert answer.num_tokens == len(tokens)


def test_an_end_token_in_the_middle_is_text(tokenizer):
    tokens = tokenizer.encode("!?")
    answer = AnswerText(tokenizer, TextRules(end_tokens=frozenset(tokens)))

    assert answer.push(tokens, FinishReason.LENGTH) == "!?"


def test_text_held_back_comes_out_at_the_end(tokenizer):
    answer = AnswerText(tokenizer, TextRules(stops=("STOP",)))

    text = answer.push(tokenizer.encode("an ST"), FinishReason.LENGTH)

    assert text == "an ST"
    assert not answer.is_stopped


def test_what_ended_an_answer_is_text_on_request(tokenizer):
    tokens = [*tokenizer.encode("a.b"), tokenizer.token_id("</s>")]
    end = frozenset(tokens[-1:])
    rules = TextRules(end_tokens=end, include_stop=True, skip_special_tokens=False)

    assert AnswerText(tokenizer, rules).push(tokens, FinishReason.STOP) == "a.b</s>"
    assert AnswerText(tokenizer, TextRules(stops=(".",), include_stop=True)).push(tokens) == "a."


def test_special_tokens_are_text_on_request(tokenizer):
    tokens = [*tokenizer.encode("a"), tokenizer.token_id("<|user|>"), *tokenizer.encode("b")]

    kept = AnswerText(tokenizer, TextRules(skip_special_tokens=False))
    assert kept.push(tokens, FinishReason.LENGTH) == "a<|user|>b"
    assert AnswerText(tokenizer).push(tokens, FinishReason.LENGTH) == "ab"
