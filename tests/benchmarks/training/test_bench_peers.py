"""The pieces of the comparison with TRL; ``full`` runs both sides in small."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report.record import Record
from benchmarks.shape import QWEN_0_5B
from benchmarks.training import bench_peers
from benchmarks.training.bench_peers import LORA, compare, run_side, write_nf4_base
from benchmarks.training.ragged_rows import LONGEST, SHORTEST, Work

TINY = {
    **QWEN_0_5B,
    "vocab_size": 1_536,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
WORK = Work(Path("nowhere"), TINY, LORA.adapter_config(""), steps=2, warmup=1, rows_per_step=3)


def test_rows_are_the_same_for_every_side_and_ragged() -> None:
    rows = replace(WORK, rows_per_step=200).rows()
    assert rows == replace(WORK, rows_per_step=200).rows()
    lengths = [len(row.ids) for row in rows]
    assert SHORTEST <= min(lengths) < max(lengths) <= LONGEST
    assert all(0 < sum(row.weights) < len(row.ids) for row in rows)


def test_work_is_the_same_in_every_process() -> None:
    assert Work.of(json.loads(json.dumps(WORK.fields()))) == WORK


def test_peers_are_compared_with_ours_step_by_step() -> None:
    ours = {"tokens_per_second": 300.0, "peak_above_base_mib": 100, "losses": [8.0, 7.0]}
    peer = {"tokens_per_second": 100.0, "peak_above_base_mib": 200, "losses": [8.0, 7.7]}
    (found,) = compare({"multiflora": ours, "trl": peer}).values()
    assert found["speed"] == 3.0
    assert found["memory_above_base"] == 0.5
    assert found["largest_loss_difference"] == pytest.approx(0.7 / 7.7)


def test_a_side_that_is_not_here_is_skipped_by_name(
    smoke_run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_PYTHON", "/nowhere/python")
    arguments = ("--smoke", "--layers", "1", "--steps", "1", "--sides", "multiflora,trl")
    figures = smoke_run(bench_peers.main, *arguments).figures
    assert figures["sides"].keys() == {"multiflora"}
    assert len(figures["sides"]["multiflora"]["losses"]) == 2
    assert "TRL_PYTHON names nothing that is there" in figures["skipped"]["trl"]


@pytest.mark.full
def test_both_sides_train_the_same_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The development packages have TRL too, as an oracle.
    monkeypatch.setenv("TRL_PYTHON", sys.executable)
    work = replace(WORK, base=write_nf4_base(tmp_path, TINY))
    results = {side: run_side(side, work, threads=2) for side in ("multiflora", "trl-decoded")}
    assert compare(results)["trl-decoded"]["largest_loss_difference"] < 1e-4
