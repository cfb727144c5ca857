"""The proof of learning on few rows: enough to see that it is learning."""

import asyncio

import pytest

from benchmarks.serving.server_process import running_server
from benchmarks.training.bench_learning import measure, worst


def outcome(before: float, skill: float, seconds: float, preference: float) -> dict[str, object]:
    def shares(skill: float, preference: float) -> dict[str, object]:
        return {
            "greedy": {"skill": skill, "preference": preference},
            "drawn": {"skill": skill, "preference": preference},
        }

    return {
        "base": shares(before, 0.0),
        "supervised": {"seconds": seconds, **shares(skill, 0.1)},
        "dpo": {"seconds": seconds, **shares(skill, preference)},
    }


def test_the_worst_seed_is_reported() -> None:
    found = worst([outcome(0.0, 0.95, 90, 0.9), outcome(0.1, 0.93, 80, 0.95)])
    assert found == {
        "skill_before": 0.1,
        "skill": 0.93,
        "seconds": 90,
        "preference_before": 0.1,
        "preference": 0.9,
        "skill_kept": 0.93,
        "dpo_seconds": 90,
    }


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_skill_and_a_preference_are_learned_by_jobs() -> None:
    with running_server("--device", "cpu", threads=2) as server:
        found = asyncio.run(measure(server.url, seed=1, num_rows=4000, num_pairs=256))
    assert found["held_out_prompts_in_training"] == 0
    assert found["base"]["greedy"]["skill"] <= 0.2
    assert found["supervised"]["greedy"]["skill"] >= 0.8
    assert found["supervised"]["greedy"]["preference"] <= 0.2
    assert found["dpo"]["greedy"]["preference"] >= 0.7
    assert found["dpo"]["greedy"]["skill"] >= 0.7
