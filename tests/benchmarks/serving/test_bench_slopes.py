"""The pieces of the slopes benchmark; ``full`` runs it in small."""

from collections.abc import Callable

import pytest

from benchmarks.report.plot import UNITS
from benchmarks.report.record import Record
from benchmarks.serving.bench_slopes import AXES, FULL, Point, fit, gaps_after, main


def test_a_line_has_its_slope_and_what_it_misses() -> None:
    line = fit([{"x": x, "step_ms": 2.0 + 0.5 * x} for x in (1, 4, 8)])
    assert line == {"slope_ms": 0.5, "intercept_ms": 2.0, "r2": 1.0}
    bent = fit([{"x": x, "step_ms": y} for x, y in ((0, 0.0), (1, 3.0), (2, 0.0))])
    assert bent == {"slope_ms": 0.0, "intercept_ms": 1.0, "r2": 0.0}


def test_steps_count_from_when_every_row_decodes() -> None:
    assert gaps_after(1.0, (0.5, 0.25, 0.25), 1.5) == [0.25, 0.25]
    assert gaps_after(1.0, (0.5, 0.25), 9.0) == []


def test_rows_decode_until_the_last_prompt_is_computed_and_on() -> None:
    assert Point(x=1, rows=1, adapters=0, rank=8, prompt_tokens=32).new_tokens(24) == 26
    # 16 prompts of 2,048 tokens, 496 a step beside 16 rows that decode
    assert (
        Point(x=1, rows=16, adapters=0, rank=8, prompt_tokens=2_048).new_tokens(24) == 24 + 67 + 1
    )


def test_one_thing_changes_along_an_axis() -> None:
    points = FULL.points()
    for name, changed in (
        ("adapters", "adapters"),
        ("ranks", "rank"),
        ("context", "prompt_tokens"),
    ):
        kept = {"rows", "adapters", "rank", "prompt_tokens"} - {changed}
        for field in kept:
            assert len({getattr(point, field) for point in points[name]}) == 1, (name, field)
        assert [point.x for point in points[name]] == [
            getattr(point, changed) for point in points[name]
        ]
    assert all(point.rows == point.adapters == point.x for point in points["batch"])
    assert set(AXES) == set(UNITS)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_runs_on_the_demo(smoke_run: Callable[..., Record]) -> None:
    axes = smoke_run(main, "--smoke").figures["axes"]
    assert tuple(axes) == AXES
    assert all(point["step_ms"] > 0 for axis in axes.values() for point in axis["points"])
