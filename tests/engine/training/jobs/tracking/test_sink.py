"""Each sink writes what its own library reads back; libraries that are missing are recorded."""

import json
import struct
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from multiflora.engine.training.jobs.tracking.message import TrackedRun
from multiflora.engine.training.jobs.tracking.sink import open_sink
from multiflora.engine.training.jobs.tracking.sink_process import SinkProcess
from multiflora.engine.training.jobs.tracking.tracker import Tracker

ROWS = [
    {"step": 1, "loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.5},
    {"step": 2, "loss": 1.0, "grad_norm": 0.5, "learning_rate": 5e-4, "epoch": 1.0},
    {"step": 2, "eval_loss": 1.5},
]


def track(run: TrackedRun) -> None:
    """A whole job, through the sink's process."""
    failures: list[Any] = []
    tracker = Tracker([run], on_failure=lambda *failure: failures.append(failure))
    tracker.begin(0, run.config)
    tracker.add(ROWS)
    tracker.add_verdict(2, [{"name": "end_rate", "value": 1.0}, {"name": "none", "value": None}])
    tracker.close(True)
    tracker.wait()
    assert failures == []


def test_tensorboard_reads_what_a_job_measured(run: TrackedRun) -> None:
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    track(run)
    read = events.EventAccumulator(run.folder)
    read.Reload()
    assert set(read.Tags()["scalars"]) == {
        *("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch"),
        *("eval/loss", "gate/end_rate"),
    }
    assert [(one.step, one.value) for one in read.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(one.step, one.value) for one in read.Scalars("eval/loss")] == [(2, 1.5)]


def test_tensorboard_forgets_steps_that_are_taken_again(run: TrackedRun) -> None:
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 5), (3, 6)):
        sink = open_sink(run)
        sink.begin(first)
        for step in range(first + 1, last + 1):
            sink.add(step, {"train/loss": float(step)})
        sink.close(succeeded=True)
    read = events.EventAccumulator(run.folder)
    read.Reload()
    assert [one.step for one in read.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.full
def test_wandb_keeps_a_run_without_a_network(
    run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(replace(run, sink="wandb", project="ships"))
    (log,) = Path(run.folder).glob("wandb/offline-run-*/run-ftjob-1.wandb")
    found = list(wandb_records(log))
    (made,) = [record.run for record in found if record.HasField("run")]
    assert (made.run_id, made.project, made.display_name) == ("ftjob-1", "ships", "fancy")
    assert list(made.tags) == ["ships"]
    shown = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in found
        if record.HasField("history")
    ]
    assert [row["train/loss"] for row in shown] == [2.0, 1.0]
    assert (shown[-1]["eval/loss"], shown[-1]["train/global_step"]) == (1.5, 2)
    (ended,) = [record.exit for record in found if record.HasField("exit")]
    assert ended.exit_code == 0


def wandb_records(log: Path) -> Iterator[Any]:
    """The file is LevelDB's log: blocks of 32 KiB, pieces with a checksum, a length and a kind."""
    kind: Any = import_module("wandb.proto.wandb_internal_pb2").Record
    content, place, whole = log.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):
            yield kind.FromString(whole)
            whole = b""


@pytest.mark.full
def test_trackio_keeps_a_run_in_its_store(
    run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    track(replace(run, sink="trackio", project="ships"))
    storage: Any = import_module("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "store", raising=False)
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "store")
    logs = storage.SQLiteStorage.get_logs("ships", "ftjob-1")
    assert [row["train/loss"] for row in logs if "train/loss" in row] == [2.0, 1.0]
    assert [row["eval/loss"] for row in logs if "eval/loss" in row] == [1.5]


class Recorded(ModuleType):
    """A tracker's public functions, and how they were called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.Settings = SimpleNamespace

    def init(self, **given: Any) -> "Recorded":
        self.calls.append(("init", given))
        return self

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.calls.append(("log", (values, step)))

    def finish(self, **given: Any) -> None:
        self.calls.append(("finish", given))


@pytest.mark.parametrize(("name", "end"), [("wandb", {"exit_code": 1}), ("trackio", {})])
def test_calls_are_those_of_the_public_interface(
    name: Any, end: dict[str, Any], run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(name)
    monkeypatch.setitem(sys.modules, name, recorded)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    sink = open_sink(replace(run, sink=name))
    sink.begin(4)
    sink.add(5, {"train/loss": 0.5})
    sink.close(succeeded=False)
    (_, made), *rest = recorded.calls
    assert (made["project"], made["resume"]) == ("multiflora", "allow")
    assert made["config"]["lora"] == {"rank": 8}
    assert rest == [("log", ({"train/loss": 0.5, "train/global_step": 5}, 5)), ("finish", end)]


def test_a_library_that_is_missing_fails_its_sink_only(
    run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    failures: list[str] = []
    sink = SinkProcess(replace(run, sink="trackio"), on_failure=failures.append)
    sink.close(True)
    sink.wait(20)
    assert failures == ["ImportError: half installed"]
