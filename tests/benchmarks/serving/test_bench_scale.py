"""The pieces of the scale benchmark; ``full`` runs it in small."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.generate import render
from benchmarks.report.plot import draw
from benchmarks.report.record import ROOT, Record
from benchmarks.serving.bench_scale import main, planned_cells, ratios


def cell(adapters: int, mix: str, speed: float) -> dict[str, Any]:
    return {
        "adapters": adapters,
        "mix": mix,
        "tokens_per_second": speed,
        "first_token_ms": {"p50": 10.0, "p99": 20.0, "max": 30.0},
        "engine_mib": 100.0,
        "device_adapter_mib": 1.0,
        "found_in_tier": {"device": 0.5},
        "failed": 0,
    }


CELLS = [cell(1, "cold", 5), cell(1, "zipf", 100), cell(8, "zipf", 50), cell(8, "uniform", 40)]
FIGURES: dict[str, Any] = {
    "command": "python -m benchmarks.serving.bench_scale",
    "commit": "abcdef0",
    "versions": {"python": "3.11"},
    "machine": {
        "processor": "Abacus",
        "cores": 2,
        "vector_units": [],
        "memory_gib": 1.0,
        "accelerator": None,
        "load_average_at_end": 0.5,
    },
    "arguments": {
        "base": "small",
        "adapter_memory": "1MiB",
        "host_memory": "1MiB",
        "concurrency": 8,
        "requests": 9,
        "prompt_tokens": 8,
        "tokens": 4,
        "threads": 2,
        "notes": "",
    },
    "ranks": [8, 16],
    "modules": ["q_proj"],
    "planned": planned_cells([1, 8, 2000]),
    "cells": CELLS,
    "ratios": ratios(CELLS),
}


def test_throughput_is_compared_with_that_of_the_fewest_adapters() -> None:
    assert ratios(CELLS) == {"zipf, 8 adapters over 1": 0.5}


def test_cells_that_were_not_measured_are_missing_in_the_report(tmp_path: Path) -> None:
    path = ROOT / "benchmarks" / "results" / "scale-20260101-120000.json"
    record = Record(path, "scale", datetime(2026, 1, 1), FIGURES)
    page = render([record])
    assert "| 8 | zipf | 50.0 | 10.0 | 20.0 |" in page
    assert "| 2,000 | zipf | missing |" in page
    assert "| 15 | tiers | missing |" in page
    assert "Swaps under load: missing." in page
    picture = draw(replace(record, path=tmp_path / path.name), tmp_path).read_text()
    assert len(picture) < 100_000
    # Text is text in the picture; a mix without a cell is not in its legend.
    assert ">zipf<" in picture
    assert ">tiers<" not in picture


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_runs_on_the_demo(smoke_run: Callable[..., Record]) -> None:
    figures = smoke_run(main, "--smoke").figures
    measured = [(cell["adapters"], cell["mix"]) for cell in figures["cells"]]
    assert measured == [
        *((1, mix) for mix in ("cold", "uniform", "zipf")),
        *((8, mix) for mix in ("cold", "uniform", "zipf")),
        *((15, mix) for mix in ("cold", "tiers")),
    ]
    for cell in figures["cells"]:
        assert cell["failed"] == 0
        assert cell["tokens"] == 4 * cell["requests"]
        if cell["mix"] == "cold":
            assert cell["found_in_tier"] == {"disk": 1.0}
    assert figures["swap"]["swapping"]["failed"] == 0
    assert figures["swap"]["swaps"] > 0
