"""Thoughts and corrections go from the file to the tokens that are predicted, letter by letter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.data.prepare import prepare
from multiflora.engine.training.data.report import DatasetRejected
from multiflora.engine.training.example import Example
from multiflora.engine.training.packed_batch import Packer

from .conftest import MakeRenderer

QUESTION = "waht is  3 +4 ?"
CORRECTED = "What is 3 + 4?"
THOUGHT = "<think>\nThey mean 3 + 4.\n\nThat  is 7.\n</think>\n\n7"


def said(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.fixture
def read(tmp_path: Path, make_renderer: MakeRenderer) -> Callable[..., tuple[PreparedDataset, Any]]:
    """``read(family, row, method=...)``: the prepared file of that row, and its tokenizer."""

    def make(name: str, row: Any, method: Any = "supervised") -> tuple[PreparedDataset, Any]:
        (tmp_path / "file").write_text(json.dumps(row) + "\n")
        renderer = make_renderer(name)
        config = DataConfig(method=method)
        dataset = prepare(tmp_path / "file", tmp_path / "set", renderer=renderer, config=config)
        return dataset, renderer.tokenizer

    return make


@pytest.mark.parametrize("answer", [THOUGHT, CORRECTED, f"{CORRECTED}\n"], ids=repr)
@pytest.mark.parametrize("name", ["chatml", "speakers"])
@pytest.mark.parametrize("form", ["messages", "question", "instruction", "pair", "texts"])
def test_an_answer_is_predicted_as_it_was_written(
    form: str, name: str, answer: str, read: Callable[..., Any]
) -> None:
    rows = {
        "messages": {"messages": said(QUESTION, answer)},
        "question": {"question": QUESTION, "answer": answer},
        "instruction": {"instruction": QUESTION, "output": answer},
        "pair": {"prompt": said(QUESTION), "completion": said(QUESTION, answer)[1:]},
        "texts": {"prompt": QUESTION, "completion": answer},
    }
    dataset, tokenizer = read(name, rows[form])
    assert {finding.code for finding in dataset.info.report.findings} == {"few_rows"}
    (example,) = dataset
    assert isinstance(example, Example)
    first = example.weights.index(1.0)
    assert set(example.weights[:first]) == {0.0}
    assert set(example.weights[first:]) == {1.0}
    assert QUESTION in tokenizer.decode(example.ids[:first])
    assert tokenizer.decode(example.ids[first:-1]).rstrip("\n") == answer.rstrip("\n")
    packer = Packer()
    packer.add_example(0, example)
    batch = packer.pack(torch.device("cpu"))
    assert batch.targets.tolist() == list(example.ids[first:])
    assert batch.sources.tolist() == list(range(first - 1, len(example.ids) - 1))


def test_a_thought_beside_the_answer_is_rendered_or_the_row_is_refused(
    read: Callable[..., Any],
) -> None:
    asked, given = said(QUESTION, "7")
    row = {"messages": [asked, {**given, "reasoning_content": "They mean 3 + 4."}]}
    with pytest.raises(DatasetRejected) as caught:
        read("chatml", row)
    assert [problem.code for problem in caught.value.report.problems] == ["template_drops_answer"]


def test_a_template_that_moves_thoughts_keeps_all_their_letters(read: Callable[..., Any]) -> None:
    dataset, tokenizer = read("thinking", {"messages": said(QUESTION, THOUGHT)})
    (example,) = dataset
    first = example.weights.index(1.0)
    assert tokenizer.decode(example.ids[first:-1]).rstrip("\n") == THOUGHT


def test_pairs_of_thoughts_share_the_bad_question(read: Callable[..., Any]) -> None:
    row = {"prompt": said(QUESTION), "chosen": said("", THOUGHT)[1:], "rejected": said("", "8")[1:]}
    dataset, tokenizer = read("chatml", row, "dpo")
    (pair,) = dataset
    assert QUESTION in tokenizer.decode(pair.prompt)
    assert tokenizer.decode(pair.chosen[:-1]).rstrip("\n") == THOUGHT
    assert tokenizer.decode(pair.rejected[:-1]).rstrip("\n") == "8"
