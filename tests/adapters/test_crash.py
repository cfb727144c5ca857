"""kill -9 at every step of every change: nothing acknowledged is lost, nothing half-done seen."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from multiflora.adapters import fault

SCRIPT = Path(__file__).with_name("crash_run.py")


def run(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = [json.dumps({"data": str(folder / f"data-{i}"), **job}) for i, job in enumerate(jobs)]
    result = subprocess.run(
        [sys.executable, SCRIPT, folder / "folders"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(jobs), result.stderr
    for job, answer in zip(jobs, answers, strict=True):
        assert not answer["problems"], (job, answer)
    return answers


def test_death_at_any_point_leaves_the_state_before_or_after(memory_folder: Path) -> None:
    jobs = [{"fault": point, "seed": seed} for point in fault.POINTS for seed in range(4)]
    random.Random(0).shuffle(jobs)
    assert all(answer["killed"] for answer in run(memory_folder, jobs))


def test_death_at_any_moment(memory_folder: Path) -> None:
    """Between the points too: inside a commit or a copy."""
    rng = random.Random(1)
    jobs = [{"seconds": rng.uniform(0.001, 0.03), "seed": seed} for seed in range(40)]
    killed = [answer["killed"] for answer in run(memory_folder, jobs)]
    assert killed.count(True) > 10
