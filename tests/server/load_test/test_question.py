"""Bodies are the same for the same seed and number, and of the length that was asked."""

import pytest

from multiflora.server.load_test.question import Question


def test_token_ids_make_a_prompt_of_exactly_so_many() -> None:
    question = Question(api="completions", num_words=50, token_ids=range(100, 200), seed=3)
    prompt = question.body("base", 7)["prompt"]
    assert len(prompt) == 50
    assert all(100 <= token < 200 for token in prompt)
    assert question.body("other", 7)["prompt"] == prompt
    assert question.body("base", 8)["prompt"] != prompt


def test_words_make_a_text() -> None:
    text = Question(api="completions", num_words=5).body("base", 0)["prompt"]
    assert len(text.split()) == 5
    (message,) = Question(num_words=5).body("base", 0)["messages"]
    assert message == {"role": "user", "content": text}


def test_fields_are_those_of_the_model_that_is_asked() -> None:
    fields = {"one": {"lora": [{"id": 0, "scale": 1.0}]}}
    question = Question(fields=fields)
    assert question.body("one", 0)["lora"] == fields["one"]["lora"]
    assert "lora" not in question.body("two", 0)
    assert question.body("two", 0)["ignore_eos"]


def test_a_chat_is_not_made_of_token_ids() -> None:
    with pytest.raises(ValueError, match="ask completions"):
        Question(token_ids=range(5))
