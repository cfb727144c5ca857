"""A disk that is full ends a job in words; with room again it goes on to the same result."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.training.job import JobEnded, JobFailed, TrainingJob

from .job_bench import PATIENT, assert_equal, finish, last, stand_alone, tensors

# What a job writes, by a part of its path.
PLACES = (
    "exports/",
    *(
        pytest.param(place, marks=pytest.mark.full)
        for place in ("micro-batch.json", "state.safetensors", "state.json", "adapter-", "step-")
    ),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_fails_the_job_and_leaves_nothing_half_written(
    place: str,
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_at(Path(job.folder), place))
        failed = finish(bench, job)[-1]
    assert isinstance(failed, JobFailed)
    assert failed.message == "the disk failed: No space left on device"
    folder = Path(job.folder)
    for export in (*folder.glob("exports/step-*"), *folder.glob("adapter")):
        assert {path.name for path in export.iterdir()} >= {"adapter_config.json"}
    bench.training.clear()
    assert isinstance(finish(bench, job)[-1], JobEnded)
    result = tensors(last(bench).folder)  # type: ignore[union-attr]
    assert_equal(result, stand_alone(bench, job, tmp_path / "alone"))


def full_at(folder: Path, place: str) -> Callable[[int], None]:
    sync = os.fsync

    def run(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(folder)) and place in path.removeprefix(str(folder)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    return run
