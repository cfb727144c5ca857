"""The comparison with PEFT's merge, in small."""

import sys
from collections.abc import Callable

import pytest

from benchmarks.merging import bench_merge
from benchmarks.report.record import Record


def test_both_sides_merge_and_the_whole_is_a_sum_over_modules(
    smoke_run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_PYTHON", sys.executable)
    figures = smoke_run(bench_merge.main, "--smoke", "--repeats", "1").figures
    seconds = figures["median_seconds"]
    assert seconds.keys() == {"slerp exact", "slerp 16", "peft svd k_proj", "peft svd q_proj"}
    small, square = seconds["peft svd k_proj"], seconds["peft svd q_proj"]
    # Two layers of two small modules, two square ones, and three that are larger than both.
    layer = 2 * small + 2 * square + 3 * max(small, square)
    assert figures["peft"]["extrapolated_seconds"] == pytest.approx(2 * layer)
    assert figures["peft"]["is_lower_bound"]
