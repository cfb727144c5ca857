"""From a file to tokens on the disk: counts, refusals with lines, leaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from multiflora.engine.text.chat_template import ChatTemplate
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.data.prepare import prepare
from multiflora.engine.training.data.renderer import Renderer
from multiflora.engine.training.data.report import Bucket, DatasetRejected, Report
from multiflora.engine.training.example import Example, Preference, Rating

from .conftest import MakeRenderer

# Word problems with worked answers, as public collections of them are written.
PROBLEMS = [
    {
        "question": "A crate holds 24 apples. How many apples are in 7 crates?",
        "answer": "Each crate holds 24.\n7 crates hold 7*24 = <<7*24=168>>168 apples.\n#### 168",
    },
    {
        "question": "Mira reads 15 pages a day. How many days does a book of 240 pages take her?",
        "answer": "240 / 15 = <<240/15=16>>16, so it takes her 16 days.\n#### 16",
    },
    {
        "question": "Two pens cost $3. What do 10 pens cost, with $2 off the total?",
        "answer": "Ten pens are 10/2 = <<10/2=5>>5 pairs.\n5*3 = $15; 15-2 = $13.\n#### 13",
    },
]
Prepare = Callable[..., PreparedDataset]


@pytest.fixture
def run(tmp_path: Path, make_renderer: MakeRenderer) -> Prepare:
    """``run(rows, "name", training=None, **config)`` with the demo's text side."""

    def run(
        rows: list[Any],
        name: str = "set",
        *,
        training: PreparedDataset | None = None,
        **config: Any,
    ) -> PreparedDataset:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(
            file,
            tmp_path / name,
            renderer=make_renderer("demo"),
            config=DataConfig(**config),
            training=training,
        )

    return run


def codes(report: Report) -> dict[str, tuple[int, ...]]:
    return {finding.code: finding.lines for finding in report.findings}


def test_word_problems_become_questions_and_answers(
    run: Prepare, make_renderer: MakeRenderer
) -> None:
    renderer = make_renderer("demo")
    dataset = run(PROBLEMS)
    for example, problem in zip(dataset, PROBLEMS, strict=True):
        assert isinstance(example, Example)
        start = example.weights.index(1.0)
        answer = renderer.tokenizer.decode(example.ids[start:], skip_special_tokens=False)
        assert answer == problem["answer"] + "<|end|>"
        asked = renderer.tokenizer.decode(example.ids[:start], skip_special_tokens=False)
        assert asked == f"<|begin|><|user|>{problem['question']}<|end|><|assistant|>"


def test_the_report_counts_what_there_is(run: Prepare) -> None:
    dataset = run(PROBLEMS)
    lengths = [len(example.ids) for example in dataset if isinstance(example, Example)]
    report = dataset.info.report
    assert (report.format, report.num_rows, report.num_examples) == ("question", 3, 3)
    assert report.num_tokens == sum(lengths)
    assert report.num_trained_tokens == sum(
        example.weights.count(1.0) for example in dataset if isinstance(example, Example)
    )
    assert [length for length in lengths if 64 < length <= 128] == lengths
    assert report.histogram == (Bucket(128, 3),)
    assert (report.num_truncated, report.num_endless, report.num_problems) == (0, 0, 0)
    assert set(codes(report)) == {"few_rows"}
    assert msgspec.json.decode(report.to_json(), type=Report) == report


def test_the_fingerprint_is_that_of_the_text_side(
    run: Prepare, make_renderer: MakeRenderer
) -> None:
    assert run(PROBLEMS).info.fingerprint == make_renderer("demo").fingerprint()


def test_every_bad_row_is_named_and_nothing_is_left(run: Prepare, tmp_path: Path) -> None:
    rows = [
        *PROBLEMS,
        {"question": "a"},
        {"question": "What now? " * 60, "answer": "b"},
        {"text": "a"},
    ]
    words = r"line 4: .*; line 5: the prompt has .*; line 6: "
    with pytest.raises(DatasetRejected, match=words) as caught:
        run(rows, max_length=200)
    report = caught.value.report
    assert caught.value.param == "training_file"
    assert [(problem.line, problem.code) for problem in report.problems] == [
        (4, "unknown_format"),
        (5, "answer_cut_off"),
        (6, "mixed_formats"),
    ]
    assert not (tmp_path / "set").exists()


def test_many_bad_rows_are_counted_and_a_few_named(run: Prepare) -> None:
    with pytest.raises(DatasetRejected, match=r"line 10: .*\(and 490 more\)") as caught:
        run([{}] * 500)
    assert caught.value.report.num_problems == 500
    assert len(caught.value.report.problems) == 50
    assert len(str(caught.value)) < 4000


def test_an_empty_file_is_refused(run: Prepare) -> None:
    with pytest.raises(DatasetRejected, match="the file has no rows"):
        run([])


def test_cut_off_rows_are_counted(run: Prepare) -> None:
    long = {"question": "Count.", "answer": "one two three " * 100}
    report = run([*PROBLEMS, long], max_length=256).info.report
    assert (report.num_truncated, report.num_endless) == (1, 1)
    (found,) = [finding for finding in report.findings if finding.code == "truncated"]
    assert found.severity == "warning"
    assert found.message.startswith("1 rows (25.0 %) are longer than max_length 256")


def test_answers_without_any_end_are_refused(run: Prepare) -> None:
    with pytest.raises(DatasetRejected, match="never to stop"):
        run([{"question": "Count.", "answer": "one two three " * 100}] * 3, max_length=100)


PAIRS = [
    {"prompt": f"{n} + 1 =", "chosen": f" {n + 1}", "rejected": f" {n + 2}"} for n in range(12)
]


def test_preferences_are_prepared_too(run: Prepare) -> None:
    dataset = run(PAIRS, method="dpo")
    assert len(dataset) == 12
    assert all(isinstance(pair, Preference) for pair in dataset)
    assert dataset.info.report.num_trained_tokens == sum(
        len(pair.chosen) + len(pair.rejected) for pair in dataset if isinstance(pair, Preference)
    )


@pytest.mark.parametrize(
    ("labels", "code"),
    [([True] * 9 + [False] * 3, "unbalanced_ratings"), ([False] * 12, "one_sided_ratings")],
)
def test_ratings_of_mostly_one_kind_are_reported(
    run: Prepare, labels: list[bool], code: str
) -> None:
    rows = [
        {"prompt": f"{n} + 1 =", "completion": f" {n + 1}", "label": label}
        for n, label in enumerate(labels)
    ]
    dataset = run(rows, method="kto")
    assert [item.is_desirable for item in dataset if isinstance(item, Rating)] == labels
    messages = {found.code: found.message for found in dataset.info.report.findings}
    assert code in messages
    if code == "unbalanced_ratings":
        assert "undesirable_weight 3" in messages[code]


@pytest.mark.parametrize(
    ("rows", "method", "words"),
    [
        (PROBLEMS, "dpo", "line 1: question rows are not for dpo training; .* preference"),
        (PAIRS, "supervised", "line 1: pair of texts rows .* takes rows of messages"),
    ],
)
def test_the_method_needs_its_rows(run: Prepare, rows: Any, method: str, words: str) -> None:
    with pytest.raises(DatasetRejected, match=words) as caught:
        run(rows, method=method)
    assert caught.value.report.num_problems == 1


def test_a_base_without_template_takes_plain_text(
    tmp_path: Path, make_renderer: MakeRenderer
) -> None:
    demo = make_renderer("demo")
    bare = Renderer(demo.tokenizer, ChatTemplate({}), end_tokens=demo.end_tokens)
    (tmp_path / "chat").write_text(json.dumps(PROBLEMS[0]))
    (tmp_path / "text").write_text(json.dumps({"text": "plain"}))
    with pytest.raises(DatasetRejected, match="has no chat template"):
        prepare(tmp_path / "chat", tmp_path / "a", renderer=bare)
    assert len(prepare(tmp_path / "text", tmp_path / "b", renderer=bare)) == 1


def test_leaks_into_the_validation_file_are_found(run: Prepare) -> None:
    training = run(PROBLEMS, "training")
    shouted = {"question": PROBLEMS[1]["question"].upper(), "answer": PROBLEMS[1]["answer"]}
    other = {"question": PROBLEMS[2]["question"], "answer": "#### 13"}
    fresh = {"question": "What is 3 times 9?", "answer": "3*9 = <<3*9=27>>27\n#### 27"}
    report = run([fresh, PROBLEMS[0], shouted, other], "validation", training=training).info.report
    assert codes(report) == {
        "leaked_rows": (2,),
        "leaked_near_rows": (3,),
        "leaked_prompts": (4,),
    }
    leak = next(finding for finding in report.findings if finding.code == "leaked_near_rows")
    assert "1 validation rows (25.0 %)" in leak.message
    assert "line 3 is line 2 there" in leak.message


def test_a_bad_validation_file_is_named_as_such(run: Prepare) -> None:
    training = run(PROBLEMS, "training")
    with pytest.raises(DatasetRejected) as caught:
        run([{}], "validation", training=training)
    assert caught.value.param == "validation_file"


def test_rows_that_become_several_examples_are_counted(
    tmp_path: Path, make_renderer: MakeRenderer
) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": str(i)} for i in range(4)]
    (tmp_path / "file").write_text(json.dumps({"messages": turns}))
    dataset = prepare(tmp_path / "file", tmp_path / "set", renderer=make_renderer("thinking"))
    report = dataset.info.report
    assert (report.num_rows, report.num_examples, report.num_split) == (1, 2, 1)
