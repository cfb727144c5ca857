"""`multiflora train` and `estimate`, as typed in a shell."""

import json
from pathlib import Path
from typing import Any

import pytest

from multiflora.adapters.folder import AdapterFolder
from multiflora.engine.training.jobs.tracking import library
from multiflora.server import cli
from multiflora.server.commands import train
from multiflora.server.commands.train import parse_change


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def row(question: str, answer: str | None) -> dict[str, Any]:
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return {"messages": [{"role": "user", "content": question}, *said]}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_change_is_read_as_json_or_text() -> None:
    assert parse_change("lora.use_rslora=true") == ("lora", "use_rslora", True)
    assert parse_change("schedule.kind=cosine") == ("schedule", "kind", "cosine")
    with pytest.raises(ValueError, match="SECTION"):
        parse_change("rank=4")


def test_a_bad_file_is_reported_with_its_lines_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."), row("Hi!", None))
    assert run(str(data), "-o", str(tmp_path / "out")) == 1
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."))
    assert run(str(data), "-o", str(tmp_path / "out"), "--set", "lora.rnk=4") != 0
    assert "did you mean 'rank'" in capsys.readouterr().err


def test_a_sink_that_is_missing_is_refused_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."))
    assert run(str(data), "-o", str(tmp_path / "out"), "--report-to", "wandb") == 1
    assert "pip install wandb" in capsys.readouterr().err


def test_an_output_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tmp_path / "rows.jsonl"), "-o", str(tmp_path)) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.full
def test_a_file_becomes_a_folder_that_peft_can_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "DATA_DIR", tmp_path / "data")
    rows = [row("Hi!", "Ahoy."), row("Bye!", "Fair winds."), row("Thanks!", "Arr.")]
    data = write_rows(tmp_path / "rows.jsonl", *rows * 2)
    out = tmp_path / "out"
    arguments = ("--epochs", "2", "--batch-size", "3", "--rank", "4", "--device", "cpu")
    arguments += ("--report-to", "tensorboard")
    assert run(str(data), "-o", str(out), *arguments) == 0
    config = AdapterFolder(out).config
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert "after 4 steps" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "rows.jsonl", "runs"]
    assert list((tmp_path / "runs" / "out").glob("events.out.tfevents.*"))
