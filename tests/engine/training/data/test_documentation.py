"""docs/training-data.md tells the truth: its rows are read, and every code is in its tables."""

import json
import re
from pathlib import Path

import pytest

from multiflora.engine.training.data.row_format import FORMATS, recognise

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "training-data.md").read_text()
ROWS = re.findall(r"`([a-z ]+)`:\n\n```jsonl\n(.*?)\n```", PAGE, re.DOTALL)
SOURCES = {
    path.stem: path.read_text() for path in (ROOT / "engine" / "training" / "data").glob("*.py")
}


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_an_example_is_of_the_format_that_it_is_for(name: str, row: str) -> None:
    fields = json.loads(row)
    found = recognise(fields)
    assert found.name == name
    assert found.read(fields, 1).line == 1


def test_every_format_has_an_example_and_its_method() -> None:
    assert {name for name, _ in ROWS} == {known.name for known in FORMATS}
    for known in FORMATS:
        method = known.method
        assert f"| `{known.name}` | {method} |" in PAGE


def codes(table: str) -> set[str]:
    """The codes in the first column of the table that begins with this heading."""
    rows = PAGE.split(f"| {table} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {code for row in rows for code in re.findall(r"`([a-z_]+)`", row.split("|")[1])}


def written(pattern: str, *names: str) -> set[str]:
    return {code for name in names for code in re.findall(pattern, SOURCES[name])}


def test_every_problem_is_in_the_table() -> None:
    names = set(SOURCES) - {"run_doctor"}
    raised = written(r'(?:RowRejected|Problem)\(\s*(?:line, )?"([a-z_]+)"', *names)
    assert codes("problem") == raised


def test_every_finding_is_in_the_table_of_the_linter() -> None:
    quoted = written(r'"([a-z]+(?:_[a-z]+)*)"', "linter", "repetition", "suspicion", "report")
    others = {"exact", "near", "prompt", "training_file", "invalid_training_file"}
    others |= {"desirable_weight", "undesirable_weight"}
    assert codes("finding") == quoted - others - {"info", "warning", "error"}


def test_every_diagnosis_is_in_the_table_of_the_doctor() -> None:
    table = PAGE.split("## The run doctor")[1].split("## Files")[0]
    found = {code for row in table.splitlines()[4:] for code in re.findall(r"`(\w+)`", row)}
    quoted = written(r'"([a-z]+(?:_[a-z]+)*)"', "run_doctor")
    series = {"step", "loss", "eval_loss", "grad_norm", "learning_rate", "epoch"}
    assert found == quoted - series - {"info", "warning", "error"}
