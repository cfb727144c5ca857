"""Kinds of adapters side by side, in small."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.report.record import Record
from benchmarks.serving import bench_adapter_kinds
from benchmarks.serving.bench_adapter_kinds import KINDS, PLAIN, VERSIONS, write_adapters
from benchmarks.shape import SMALL, build_base


def test_versions_of_a_kind_differ_and_are_of_that_kind(tmp_path: Path) -> None:
    shape = {**SMALL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    base = build_base(tmp_path / "base", shape | {"vocab_size": 256})
    folders = write_adapters(base, tmp_path / "adapters")
    assert folders.keys() == KINDS.keys()
    for name, versions in folders.items():
        files = {(folder / "adapter_model.safetensors").read_bytes() for folder in versions}
        assert len(files) == VERSIONS, name
        config = json.loads((versions[0] / "adapter_config.json").read_text())
        for key, value in KINDS[name][1].items():
            same = sorted(config[key]) == sorted(value) if isinstance(value, list) else None
            assert same or config[key] == value, (name, key)


@pytest.mark.full
def test_every_kind_is_compared_with_lora(smoke_run: Callable[..., Record]) -> None:
    figures = smoke_run(bench_adapter_kinds.main, "--smoke").figures
    assert figures["kinds"].keys() == figures["step_over_lora"].keys() == KINDS.keys()
    assert figures["step_over_lora"][PLAIN] == 1
    for one in figures["kinds"].values():
        assert len(one["loads"]) == VERSIONS
        assert one["load_seconds"] > 0
        assert one["step_ms"] > 0
