"""kill -9 of the server at every durable step of a job: the next one ends it, once and wholly."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("crash_run.py")


def run(folder: Path, deaths: Iterable[tuple[int, str]]) -> list[dict[str, Any]]:
    cases = [
        {"data": str(folder / f"{call}-{moment}"), "call": call, "moment": moment}
        for call, moment in deaths
    ]
    result = subprocess.run(
        [sys.executable, SCRIPT],
        input="\n".join(map(json.dumps, cases)),
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, len(answers)) == (0, len(cases)), result.stderr
    for case, answer in zip(cases, answers, strict=True):
        assert not answer["problems"], (case, answer)
    return answers


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.full)])
def test_death_at_any_step_leaves_a_job_that_ends_once(memory_folder: Path, moment: str) -> None:
    (alive,) = run(memory_folder, [(-1, moment)])
    calls = alive["calls"]
    assert calls[0] == "jobs.create"
    assert {"preparing.prepare", "jobs.remove_checkpoint", "jobs.seal"} < set(calls)
    assert calls[-2:] == ["publishing.point", "jobs.succeed"]
    answers = run(memory_folder, [(call, moment) for call in range(len(calls))])
    assert all(answer["calls"] is None for answer in answers), "each of them was killed"


def test_a_disk_that_is_full_for_a_while_delays_a_job_and_breaks_nothing(
    memory_folder: Path,
) -> None:
    (alive,) = run(memory_folder, [(-1, "before")])
    answers = run(memory_folder, [(call, "full") for call in range(0, len(alive["calls"]), 2)])
    assert all(len(answer["calls"]) > len(alive["calls"]) for answer in answers[1:])
