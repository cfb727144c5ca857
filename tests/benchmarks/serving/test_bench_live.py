"""Both ways to a live adapter, in small, on a real server."""

from collections.abc import Callable

import pytest

from benchmarks.report.record import Record
from benchmarks.serving import bench_live, bench_start


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_uploads_and_jobs_go_live(smoke_run: Callable[..., Record]) -> None:
    figures = smoke_run(bench_live.main, "--smoke").figures
    for upload in figures["upload"]["repeats"]:
        assert 0 < upload["upload_seconds"] < upload["first_token_seconds"]
    job = figures["job"]
    assert 0 < job["live_seconds"] < job["first_token_seconds"]
    assert job["trained_tokens"] > 0


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_second_start_is_measured_beside_the_first(smoke_run: Callable[..., Record]) -> None:
    figures = smoke_run(bench_start.main, "--smoke").figures
    assert figures["starts"]["second"]["load_seconds"] > 0
    assert figures["model"].startswith("Small shape")
