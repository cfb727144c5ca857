"""A row that no look-up could survive ends its own job, before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter, PreparedDataset
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.error import InvalidTrainingData
from multiflora.engine.training.example import Example, Preference
from multiflora.engine.training.job import JobEnded, JobFailed, TrainingJob

from .job_bench import PATIENT, finish

GOOD = Example((3, 4, 5), (0.0, 1.0, 1.0), 1)


@pytest.mark.parametrize(
    "row",
    [
        Example((3, 384, 5), (0.0, 1.0, 1.0), 7),
        Example((3, 4, -1), (0.0, 1.0, 1.0), 7),
        Preference((3,), (4, 9999), (5,), 7),
        Preference((3,), (4,), (9999,), 7),
    ],
)
def test_a_token_that_the_base_does_not_know_is_named_with_its_line(
    row: Example | Preference, tmp_path: Path
) -> None:
    good = Preference((3,), (4,), (5,), 1) if isinstance(row, Preference) else GOOD
    config = DataConfig(method="dpo" if isinstance(row, Preference) else "supervised")
    with DatasetWriter(tmp_path / "poisoned", config) as writer:
        for item in (good, row):
            writer.add(item)
        writer.finish(Report(format="test"), fingerprint="")
    with (
        PreparedDataset.open(tmp_path / "poisoned") as dataset,
        pytest.raises(InvalidTrainingData, match="line 7"),
    ):
        dataset.check_tokens(384)


def test_a_poisoned_row_ends_its_job_and_the_next_one_runs(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    bench = make_bench(training=PATIENT)
    with DatasetWriter(tmp_path / "poisoned", DataConfig()) as writer:
        for row in (GOOD, Example((3, 100_000, 5), (0.0, 1.0, 1.0), 2)):
            writer.add(row)
        writer.finish(Report(format="test"), fingerprint="")
    failed = finish(bench, make_job(data=str(tmp_path / "poisoned")))[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "invalid_training_data"
    assert "line 2 has the token 100000" in failed.message
    assert isinstance(finish(bench, make_job("next"))[-1], JobEnded)
