"""Exports come and go with their checkpoints, and a crash leaves none that looks whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multiflora.engine.training.exported_folder import exported_folder
from multiflora.engine.training.job import CheckpointExported, JobEnded, TrainingJob

from .job_bench import PATIENT, finish, found, last


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_exports_that_nobody_reads_go_with_their_checkpoints(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    finish(bench, job)
    reported = [event.step for event in found(bench, CheckpointExported)]
    kept = names(Path(job.folder) / "checkpoints")
    assert len(reported) == 3 > len(kept) == job.settings.checkpoint.keep
    assert names(Path(job.folder) / "exports") == kept


def test_what_a_crash_left_is_swept_and_the_rest_told_of_again(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    finish(bench, job)
    folder = Path(job.folder)
    os.rename(folder / "adapter", folder / ".adapter-half")
    os.rename(exported_folder(folder, 4), folder / "exports" / ".step-00000004-half")
    exported_folder(folder, 1).mkdir()
    bench.training.clear()
    finish(bench, job)
    assert isinstance(last(bench), JobEnded)
    assert [event.step for event in found(bench, CheckpointExported)] == [4, 6]
    assert names(folder / "exports") == names(folder / "checkpoints")
    assert ".adapter-half" not in names(folder)
