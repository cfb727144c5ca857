"""Every rule finds what it is for, with numbers and lines, and is silent about good data."""

import random
from typing import Any

import pytest

from multiflora.engine.training.data.finding import Finding
from multiflora.engine.training.data.linter import Linter
from multiflora.engine.training.data.row_format import recognise
from multiflora.engine.training.data.row_key import normalised, row_key

WORDS = "apple bread cloud drum eagle field grass house ink jar kite lamp moon".split()


def lint(rows: list[dict[str, Any]], **options: Any) -> dict[str, Finding]:
    linter = Linter(**options)
    for line, fields in enumerate(rows, 1):
        row = recognise(fields).read(fields, line)
        linter.add(row, row_key(row))
    return {finding.code: finding for finding in linter.findings()}


def good(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    return [{"question": words(8), "answer": words(rng.randrange(6, 12))} for _ in range(num_rows)]


def good_pairs(num_rows: int) -> list[dict[str, Any]]:
    rows, others = good(num_rows), good(num_rows, seed=1)
    return [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": other["answer"]}
        for row, other in zip(rows, others, strict=True)
    ]


def test_good_data_has_no_findings() -> None:
    assert lint(good(60)) == {}
    assert lint(good_pairs(60)) == {}


def test_few_rows() -> None:
    assert lint(good(9))["few_rows"].severity == "warning"
    assert lint(good(49))["few_rows"].severity == "info"
    assert "9 rows" in lint(good(9))["few_rows"].message


def test_duplicates() -> None:
    rows = good(50)
    near = {"question": rows[3]["question"].upper() + "!", "answer": rows[3]["answer"]}
    other = {"question": rows[4]["question"], "answer": "something else"}
    found = lint([*rows, rows[1], rows[1], near, other])
    assert found["duplicates"].lines == (51, 52)
    assert found["duplicates"].message.startswith("2 rows (3.7 %) are the same")
    assert found["duplicates"].severity == "warning"
    assert found["near_duplicates"].lines == (53,)
    assert found["repeated_prompts"].lines == (54,)


def test_only_the_first_lines_are_named() -> None:
    found = lint([*good(50), *good(50)])["duplicates"]
    assert found.lines == (51, 52, 53, 54, 55)
    assert found.message.startswith("50 rows (50.0 %)")


@pytest.mark.parametrize(
    ("first", "second", "are_alike"),
    [
        ("Hello,  World!", "hello world", True),
        ("it is 3.5", "it is 35", False),
        ("3 + 4", "3 - 4", False),
        ("\uff28\uff49", "hi", True),
        ("(yes)", "yes.", True),
        ("a b", "ab", False),
    ],
)
def test_what_counts_as_nearly_the_same(first: str, second: str, are_alike: bool) -> None:
    assert (normalised(first) == normalised(second)) is are_alike


def test_one_answer_for_everything() -> None:
    rows = good(60)
    for row in rows[::3]:
        row["answer"] = "I cannot help with that."
    found = lint(rows)["dominant_answer"]
    assert found.message.startswith("20 of 60 answers (33.3 %) are 'I cannot help with that.'")
    assert found.lines == (1,)


def test_a_choice_may_repeat_but_not_nearly_always() -> None:
    rows = good(60)
    for number, row in enumerate(rows):
        row["answer"] = ("positive", "negative")[number % 2]
    assert "dominant_answer" not in lint(rows)
    for row in rows[:56]:
        row["answer"] = "negative"
    assert "dominant_answer" in lint(rows)


def test_short_answers_among_long_ones() -> None:
    rows = good(60)
    rows[7]["answer"] = rows[8]["answer"] = "ok"
    found = lint(rows)["short_answers"]
    assert (found.severity, found.lines) == ("warning", (8, 9))
    for number, row in enumerate(rows):
        row["answer"] = "ABC"[number % 3]
    assert lint(rows)["short_answers"].severity == "info"


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user", "[INST] hi", "### Response: hi", "<start_of_turn>", "a</s>", "<EOT>"],
)
def test_marks_of_templates_in_conversations(text: str) -> None:
    rows = good(50)
    rows[2]["answer"] += f"\n{text}"
    found = lint(rows, special_tokens={"<EOT>"})["template_marks"]
    assert found.lines == (3,)
    assert "1 rows (2.0 %)" in found.message


def test_own_marks_are_right_in_plain_text_and_foreign_ones_wrong() -> None:
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in good(50)]
    rows[0]["completion"] += "<EOT>"
    assert lint(rows, special_tokens={"<EOT>"}) == {}
    rows[0]["prompt"] += "<EOT><|im_start|>"
    assert "'<|im_start|>'" in lint(rows, special_tokens={"<EOT>"})["template_marks"].message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Dear {{ name }},", "placeholders"),
        ("Dear ${name},", "placeholders"),
        ("caf\ufffd", "broken_letters"),
        ("caf\u00c3\u00a9", "broken_letters"),
        ("<think>well", "open_thoughts"),
    ],
)
def test_traces_of_mistakes(text: str, code: str) -> None:
    rows = good(50)
    rows[4]["answer"] += text
    assert {found: finding.lines for found, finding in lint(rows).items()} == {code: (5,)}


def test_whole_thoughts_are_no_mistake() -> None:
    rows = good(50)
    rows[4]["answer"] = "<think>well</think>\n\nyes indeed"
    assert lint(rows) == {}


def test_pairs_that_teach_length() -> None:
    rows = good_pairs(20)
    for row in rows:
        row["chosen"] += " and so on" * 6
    found = lint(rows)["length_skew"]
    assert "100.0 % of the chosen are the longer ones" in found.message
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    assert "0.0 % of the chosen" in lint(rows)["length_skew"].message


def test_pairs_that_contradict_each_other_or_hardly_differ() -> None:
    rows = good_pairs(50)
    first = rows[0]
    turned = {**first, "chosen": first["rejected"], "rejected": first["chosen"]}
    rows[9]["rejected"] = rows[9]["chosen"].upper()
    found = lint([*rows, turned])
    assert found["reversed_pairs"].lines == (51,)
    assert found["alike_answers"].lines == (10,)
