"""Weights fall on answers, lengths keep to the limit, and nothing that teaches nothing passes."""

from typing import Any

import pytest

from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.problem import RowRejected
from multiflora.engine.training.data.row import Row
from multiflora.engine.training.data.row_encoder import EncodedRow, RowEncoder
from multiflora.engine.training.data.row_format import recognise
from multiflora.engine.training.example import Example, Preference

from .conftest import MakeRenderer


def row(**fields: Any) -> Row:
    return recognise(fields).read(fields, 5)


def chat(*contents: str, **weights: int) -> Row:
    """User and assistant in turn; ``_3=0`` is the weight of message 3."""
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": content}
        for place, content in enumerate(contents)
    ]
    for place, weight in weights.items():
        turns[int(place[1:])]["weight"] = weight  # type: ignore[assignment]
    return row(messages=turns)


@pytest.fixture
def encode(make_renderer: MakeRenderer) -> Any:
    """``encode(row, "demo", max_length=...)``."""

    def run(row: Row, name: str = "demo", **config: Any) -> EncodedRow:
        return RowEncoder(make_renderer(name), DataConfig(**config)).encode(row)

    return run


@pytest.fixture
def shown(make_renderer: MakeRenderer) -> Any:
    """The text of the tokens of one weight."""

    def show(example: Example, weight: float, name: str = "demo") -> str:
        ids = [i for i, w in zip(example.ids, example.weights, strict=True) if w == weight]
        return make_renderer(name).tokenizer.decode(ids, skip_special_tokens=False)

    return show


def test_answers_count_and_prompts_do_not(encode: Any, shown: Any) -> None:
    (example,) = encode(chat("one", "two", "three", "four")).items
    assert shown(example, 1.0) == "two<|end|>four<|end|>"
    assert set(example.weights) == {0.0, 1.0}
    assert example.line == 5


def test_prompts_count_as_much_as_they_should(encode: Any, shown: Any) -> None:
    spoken = chat("one", "two", "three", "four", _1=0)
    (example,) = encode(spoken, prompt_loss_weight=0.25).items
    assert shown(example, 1.0) == "four<|end|>"
    assert shown(example, 0.0) == "<|begin|>two<|end|>"
    asked = ["<|user|>one<|end|><|assistant|>", "<|user|>three<|end|><|assistant|>"]
    assert shown(example, 0.25) == "".join(asked)


def test_a_prompt_counts_once_in_the_examples_of_a_row(encode: Any, shown: Any) -> None:
    first, second = encode(
        chat("one", "two", "three", "four"), "speakers", prompt_loss_weight=0.5
    ).items
    assert shown(first, 0.5, "speakers") == "ser: one\nAssistant: "
    assert "one" not in shown(second, 0.5, "speakers")
    assert shown(second, 0.5, "speakers").endswith("User: three\nAssistant: ")
    assert shown(second, 1.0, "speakers") == "four<eos>"


def test_weight_zero_is_kept_or_refused_but_never_lost(encode: Any) -> None:
    spoken = chat("one", "two", "three", "four", _1=0)
    assert len(encode(spoken, "speakers").items) == 1
    with pytest.raises(RowRejected, match="set that to 0") as caught:
        encode(spoken, "speakers", prompt_loss_weight=0.5)
    assert caught.value.code == "lost_weight"


def test_a_raw_completion_is_what_the_completions_route_would_continue(
    encode: Any, make_renderer: MakeRenderer
) -> None:
    for name in ("demo", "inst"):
        renderer = make_renderer(name)
        (example,) = encode(row(prompt="3 + 4 =", completion=" 7"), name).items
        sent = renderer.tokenizer.encode("3 + 4 =")
        assert list(example.ids[: len(sent)]) == sent
        assert example.weights == (0.0,) * len(sent) + (1.0,) * (len(example.ids) - len(sent))
        assert example.ids[-1] == renderer.end_token
        assert renderer.tokenizer.decode(example.ids) == "3 + 4 = 7"
    assert sent[0] == renderer.tokenizer.token_id("<s>")


def test_a_token_never_crosses_the_border_of_prompt_and_completion(
    encode: Any, make_renderer: MakeRenderer
) -> None:
    """ "question" is one token where it is written in one piece."""
    tokenizer = make_renderer("demo").tokenizer
    (example,) = encode(row(prompt="Add th", completion="e numbers")).items
    sent = tokenizer.encode("Add th")
    assert tokenizer.encode("Add the numbers")[: len(sent)] != sent
    assert list(example.ids[: len(sent)]) == sent


def test_an_end_that_is_written_is_not_written_twice(encode: Any) -> None:
    bare, ended = (
        encode(row(prompt="a", completion=text)).items[0].ids for text in ("b", "b<|end|>")
    )
    assert bare == ended


def test_plain_text_counts_whole_and_long_text_goes_on(encode: Any, shown: Any) -> None:
    text = "All of this is learnt, and nothing of it is lost at the limit."
    (whole,) = encode(row(text=text)).items
    assert shown(whole, 1.0) == text[1:] + "<|end|>"
    pieces = encode(row(text=text), max_length=8)
    assert sum((each.ids for each in pieces.items), ()) == whole.ids
    assert {len(each.ids) for each in pieces.items[:-1]} == {8}
    assert not pieces.is_truncated


def test_a_long_answer_is_cut_and_counted(encode: Any) -> None:
    whole = encode(chat("one", "two three four five six"))
    length = len(whole.items[0].ids)
    assert not encode(chat("one", "two three four five six"), max_length=length).is_truncated
    cut = encode(chat("one", "two three four five six"), max_length=length - 1)
    assert cut.is_truncated
    assert cut.items[0].ids == whole.items[0].ids[:-1]


def test_an_answer_that_is_cut_off_entirely_is_refused(encode: Any) -> None:
    spoken = chat("one two three", "four")
    num_asked = encode(spoken).items[0].weights.index(1.0)
    assert len(encode(spoken, max_length=num_asked + 1).items[0].ids) == num_asked + 1
    with pytest.raises(RowRejected, match=f"the prompt has {num_asked} tokens") as caught:
        encode(spoken, max_length=num_asked)
    assert caught.value.code == "answer_cut_off"


def test_pairs_have_one_prompt_and_two_ended_answers(
    encode: Any, make_renderer: MakeRenderer
) -> None:
    renderer = make_renderer("demo")
    answer = {"role": "assistant", "content": "7"}
    worse = {"role": "assistant", "content": "8"}
    fields: dict[str, Any] = {"prompt": [{"role": "user", "content": "3 + 4?"}]}
    (pair,) = encode(row(**fields, chosen=[answer], rejected=[worse]), method="dpo").items
    (example,) = encode(chat("3 + 4?", "7")).items
    assert isinstance(pair, Preference)
    assert pair.prompt + pair.chosen == example.ids
    assert renderer.tokenizer.decode(pair.rejected, skip_special_tokens=False) == "8<|end|>"
    (raw,) = encode(row(prompt="3 + 4 =", chosen=" 7", rejected=" 8"), method="dpo").items
    (completion,) = encode(row(prompt="3 + 4 =", completion=" 8")).items
    assert raw.prompt + raw.rejected == completion.ids


def test_pairs_keep_to_the_limit(encode: Any) -> None:
    pair = row(prompt="one and one", chosen=" two three four five", rejected=" six")
    whole = encode(pair, method="dpo").items[0]
    length = len(whole.prompt) + 2
    cut = encode(pair, method="dpo", max_length=length)
    assert cut.is_truncated
    assert cut.items[0].chosen == whole.chosen[:2]
    assert cut.items[0].rejected == whole.rejected[:2]
    with pytest.raises(RowRejected, match="raise it"):
        encode(pair, method="dpo", max_length=len(whole.prompt))


@pytest.mark.parametrize(
    ("chosen", "rejected", "max_length", "words"),
    [
        (" two", " two", 100, "the two answers are the same$"),
        (" two three four", " two three five", 2, "the same up to max_length 2"),
    ],
)
def test_pairs_without_a_difference_are_refused(
    encode: Any, chosen: str, rejected: str, max_length: int, words: str
) -> None:
    pair = row(prompt="a", chosen=chosen, rejected=rejected)
    with pytest.raises(RowRejected, match=words) as caught:
        encode(pair, method="dpo", max_length=max_length)
    assert caught.value.code == "identical_answers"


def test_a_rating_is_its_prompt_and_what_serving_would_have_sent(encode: Any) -> None:
    asked, answer = [{"role": "user", "content": "3 + 4?"}], {"role": "assistant", "content": "7"}
    (example,) = encode(row(messages=[*asked, answer])).items
    rated = row(prompt=asked, completion=[answer], label=False)
    (rating,) = encode(rated, method="kto").items
    assert rating.prompt + rating.completion == example.ids
    assert not rating.is_desirable
    plain = row(prompt="3 + 4 =", completion=" 7", label=True)
    (whole,) = encode(plain, method="kto").items
    assert whole.is_desirable
    cut = encode(plain, method="kto", max_length=len(whole.prompt) + 1)
    assert (cut.items[0].completion, cut.is_truncated) == (whole.completion[:1], True)
    with pytest.raises(RowRejected, match="nothing of the answer"):
        encode(plain, method="kto", max_length=len(whole.prompt))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"prompt_loss_weight": 1.5}, "prompt_loss_weight is 1.5"),
        ({"prompt_loss_weight": float("nan")}, "prompt_loss_weight is nan"),
        ({"method": "ppo"}, "supervised, dpo or kto"),
        ({"method": "dpo", "prompt_loss_weight": 0.5}, "leave it out for dpo"),
        ({"method": "kto", "prompt_loss_weight": 0.5}, "leave it out for kto"),
    ],
)
def test_settings_are_checked(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig(**config)
