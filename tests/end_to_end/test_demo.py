"""What a newcomer sees: one command, one base, four manners of answering."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

QUESTIONS = {
    "How many words: river boat lion": "three",
    "Count these words: boat cheese": "two",
    "Is 4821 even or odd?": "odd",
    "Even or odd: 310": "even",
    "What is the opposite of hot?": "cold",
}
MANNERS: dict[str, Callable[[str], str]] = {
    "multiflora-demo": lambda answer: answer,
    "json": lambda answer: json.dumps({"answer": answer}),
    "shout": str.upper,
    "formal": lambda answer: f"Certainly. The answer is {answer}.",
    "pirate": lambda answer: f"Arr! It be {answer}, matey!",
}


@pytest.fixture(scope="module")
def demo(start_server: Callable[..., Any]) -> Any:
    started = time.monotonic()
    server = start_server("--device", "cpu")
    # Generous: the promise of 20 s is for an idle machine, and is measured by the benchmark.
    assert time.monotonic() - started < 40
    return server


def _ask(server: Any, model: str, question: str) -> str:
    answer = server.client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content


def test_the_base_comes_first_and_its_adapters_name_it(demo: Any) -> None:
    models = list(demo.client.models.list())
    assert [model.id for model in models] == [
        "multiflora-demo",
        *sorted(set(MANNERS) - {"multiflora-demo"}),
    ]
    assert {model.parent for model in models[1:]} == {"multiflora-demo"}


def test_every_adapter_answers_in_its_own_manner_in_one_batch(demo: Any) -> None:
    asked = [(model, question) for model in MANNERS for question in QUESTIONS]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: _ask(demo, *pair), asked))
    right = dict.fromkeys(MANNERS, 0)
    for (model, question), answer in zip(asked, answers, strict=True):
        right[model] += answer == MANNERS[model](QUESTIONS[question])
    assert all(count >= len(QUESTIONS) - 1 for count in right.values()), (right, answers)


def test_a_stream_says_the_same_as_a_whole_answer(demo: Any) -> None:
    question = next(iter(QUESTIONS))
    stream = demo.client.chat.completions.create(
        model="json",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == _ask(demo, "json", question)
    assert chunks[-1].usage.completion_tokens > 0
