"""Checkpoints: all or nothing, and a resumed run is the same run, bit for bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.training.checkpoint import CheckpointFolder, RunState, Snapshot
from multiflora.engine.training.config import (
    OPTIMIZERS,
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    SupervisedSettings,
)
from multiflora.engine.training.error import CheckpointMismatch
from multiflora.engine.training.quantum import CheckpointWritten, StepTaken

SETTINGS: dict[str, Any] = {
    "lora": LoraSettings(rank=4, alpha=8, dropout=0.1),
    "batch": BatchSettings(batch_size=2, num_epochs=3, micro_batch_tokens=60),
    "checkpoint": CheckpointSettings(every_steps=2),
    "evaluation": EvaluationSettings(every_steps=3, load_best=False),
}


def snapshot(step: int, **state: Any) -> Snapshot:
    tensors = {"values": torch.full((4,), float(step)), "moment": torch.tensor([step] * 3).byte()}
    return Snapshot(RunState(step=step, **state), tensors)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (SupervisedSettings(neftune_alpha=5.0), {}),
        (PreferenceSettings(), {}),
        (SupervisedSettings(), {"lora": replace(SETTINGS["lora"], use_dora=True)}),
        *(
            (SupervisedSettings(), {"optimizer": OptimizerSettings(kind=kind)})
            for kind in OPTIMIZERS[1:]
        ),
    ],
    ids=["supervised", "preferences", "dora", *OPTIMIZERS[1:]],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    method: Any,
    changes: dict[str, Any],
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_rows: Callable[..., Any],
) -> None:
    rows = make_rows(method)
    settings = {**SETTINGS, "method": method, "validation": rows[:3], **changes}
    whole = make_run(rows, folder="whole", **settings)
    expected = {e.step: e.metrics for e in finish(whole) if isinstance(e, StepTaken)}
    broken = make_run(rows, folder="broken", **settings)
    found = {}
    while broken.state.step < 7:
        event = broken.run_quantum().event
        if isinstance(event, StepTaken):
            found[event.step] = event.metrics
    broken.close()
    resumed = make_run(rows, folder="broken", **settings)
    first = resumed.state.step
    assert first == 6
    again = {e.step: e.metrics for e in finish(resumed) if isinstance(e, StepTaken)}
    assert again.keys() == set(range(first + 1, resumed.num_steps + 1))
    assert found | again == expected
    assert torch.equal(resumed.factors.values, whole.factors.values)
    assert resumed.state == whole.state


def test_a_killed_process_resumes_bit_for_bit(
    model_folder: Callable[[str], Path], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([example.ids for example in make_examples([20, 30, 10, 40, 25])]))

    def start(*names: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("resume_run.py"))]
            + [str(path) for path in (model_folder("llama"), rows)]
            + [str(tmp_path / name) for name in names],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    broken = start("broken")
    assert broken.stdout is not None
    killed_at = next(step for step, _ in map(json.loads, broken.stdout) if step == 7)
    broken.kill()
    broken.communicate()
    lines = start("broken", "whole").communicate()[0].splitlines()
    resumed, whole = lines[:-12], lines[-12:]
    assert [json.loads(line)[0] for line in whole] == list(range(1, 13))
    assert 5 <= json.loads(resumed[0])[0] <= killed_at
    assert whole[-len(resumed) :] == resumed


def test_a_finished_run_has_nothing_left_to_do(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    run = make_run(make_examples([9, 8]), **SETTINGS)
    events = finish(run)
    again = make_run(make_examples([9, 8]), **SETTINGS)
    assert [type(event) for event in finish(again)] == [type(events[-1])]
    assert torch.equal(again.factors.values, run.factors.values)


def test_another_run_is_refused_by_what_differs(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    rows = make_examples([9, 8])
    finish(make_run(rows, **SETTINGS))
    with pytest.raises(CheckpointMismatch, match=r"another data .*empty folder"):
        make_run(make_examples([9, 8], seed=1), **SETTINGS)
    with pytest.raises(CheckpointMismatch, match="another settings"):
        make_run(rows, **{**SETTINGS, "optimizer": OptimizerSettings(learning_rate=1e-5)})
    with pytest.raises(CheckpointMismatch, match="another base"):
        make_run(rows, family="qwen3", **SETTINGS)
    weights = [replace(row, weights=(0.0, *(0.5,) * (len(row.ids) - 1))) for row in rows]
    with pytest.raises(CheckpointMismatch, match="another data"):
        make_run(weights, **SETTINGS)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, {"base": "x"}, keep=2)
    for step in (2, 4, 6, 8):
        folder.write(snapshot(step, best_step=2))
    assert folder.steps() == [2, 6, 8]
    read = folder.read(6)
    assert read.state == RunState(step=6, best_step=2)
    assert read.tensors.keys() == snapshot(6).tensors.keys()
    for name, tensor in snapshot(6).tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_what_a_crash_left_is_swept_and_never_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, {}, keep=2)
    folder.write(snapshot(2))
    (tmp_path / ".incoming-4").mkdir()
    (tmp_path / ".incoming-4" / "state.json").write_text("{")
    folder = CheckpointFolder(tmp_path, {}, keep=2)
    assert folder.steps() == [2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, {}, keep=2)
    target = folder.write(snapshot(2))
    (target / name).write_bytes((target / name).read_bytes()[:40])
    with pytest.raises(CheckpointMismatch, match="step-00000002 is damaged"):
        folder.read(2)


def test_a_slow_disk_makes_the_run_not_ready_and_nothing_else(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_examples: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import threading

    gate = threading.Event()
    write = CheckpointFolder.write

    def slow(self: CheckpointFolder, shot: Snapshot) -> Path:
        gate.wait()
        return write(self, shot)

    monkeypatch.setattr(CheckpointFolder, "write", slow)
    run = make_run(make_examples([9, 8]), **{**SETTINGS, "batch": BatchSettings(max_steps=2)})
    while run.ready():
        run.run_quantum()
    assert run.state.step == 2
    assert not run.has_ended
    gate.set()
    assert isinstance(finish(run)[0], CheckpointWritten)


def test_a_failing_disk_ends_the_run_and_keeps_the_last_checkpoint(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_examples: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(make_examples([9, 8]), **SETTINGS)
    while not run._checkpoints.steps():
        run.run_quantum()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiflora.adapters.durable.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        finish(run)
    assert run.has_ended
    assert run._checkpoints.read(run._checkpoints.steps()[-1]).state.step >= 2
