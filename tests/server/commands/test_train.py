"""`multiflora train` and `estimate`, as typed in a shell."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from multiflora.adapters.folder import WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.store import AdapterStore
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.job import JobEnded, TrainingJob
from multiflora.engine.training.jobs.tracking import availability
from multiflora.server import cli
from multiflora.server.base_model import DEMO
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
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."))
    assert run(str(data), "-o", str(tmp_path / "out"), "--report-to", "wandb") == 1
    assert "pip install wandb" in capsys.readouterr().err


def test_an_output_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tmp_path / "rows.jsonl"), "-o", str(tmp_path)) == 2
    assert "exists" in capsys.readouterr().err


PIRATE = DEMO / "adapters" / "pirate"


def pair(question: str, better: str, worse: str) -> dict[str, Any]:
    return {
        "input": row(question, None),
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


def test_an_adapter_folder_is_gone_on_from_and_preferred_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the training itself."""
    ordered: list[TrainingJob] = []

    async def end(job: TrainingJob, *_: Any) -> JobEnded:
        ordered.append(job)
        shutil.copytree(PIRATE, tmp_path / "trained")
        return JobEnded(reason="finished", step=1, folder=str(tmp_path / "trained"))

    monkeypatch.setattr(train, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(train, "_train", end)
    rows = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."), row("Bye!", "Fair winds."))
    pairs = write_rows(tmp_path / "pairs.jsonl", pair("Hi!", "Ahoy.", "Hello."))
    for method, file in (("sft", rows), ("dpo", pairs)):
        out = tmp_path / method
        assert run(str(file), "-o", str(out), "--method", method, "--model", str(PIRATE)) == 0
    config = AdapterFolder(PIRATE).config
    (digest,) = AdapterStore(tmp_path / "data").digests()
    assert [job.start for job in ordered] == [digest, digest]
    assert [job.reference for job in ordered] == [None, digest]
    assert {job.base_name for job in ordered} == {"multiflora/demo-base"}
    for job in ordered:
        lora = job.settings.lora
        assert (lora.rank, lora.alpha) == (config["r"], config["lora_alpha"])
        assert set(lora.target_modules) == set(config["target_modules"])


def test_rows_to_repeat_are_prepared_beside_those_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the training itself."""
    ordered: list[tuple[TrainingJob, int, int]] = []

    async def end(job: TrainingJob, *_: Any) -> JobEnded:
        assert job.replay is not None
        folders = Path(job.data), Path(job.replay)
        with PreparedDataset.open(folders[0]) as new, PreparedDataset.open(folders[1]) as old:
            ordered.append((job, len(new), len(old)))
        shutil.copytree(PIRATE, tmp_path / "trained")
        return JobEnded(reason="finished", step=1, folder=str(tmp_path / "trained"))

    monkeypatch.setattr(train, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(train, "_train", end)
    pairs = write_rows(tmp_path / "pairs.jsonl", pair("Hi!", "Ahoy.", "Hello."))
    old = write_rows(tmp_path / "old.jsonl", row("Bye!", "Fair winds."), row("Thanks!", "Arr."))
    arguments = ("--method", "dpo", "--replay", str(old), "--set", "replay.share=0.25")
    assert run(str(pairs), "-o", str(tmp_path / "out"), *arguments) == 0
    ((job, num_new, num_old),) = ordered
    assert (num_new, num_old) == (1, 2)
    assert (job.settings.replay.share, job.settings.replay.adaptive) == (0.25, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--replay", "{bad}"), "line 1"),
        (("--set", "replay.share=0.25"), "name the file to repeat"),
    ],
)
def test_rows_that_cannot_be_repeated_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
    message: str,
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."))
    bad = write_rows(tmp_path / "bad.jsonl", pair("Hi!", "Ahoy.", "Hello."))
    given = [text.format(bad=bad) for text in arguments]
    assert run(str(data), "-o", str(tmp_path / "out"), *given) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_with_an_adapter_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", row("Hi!", "Ahoy."))
    arguments = (str(data), "-o", str(tmp_path / "out"))
    assert run(*arguments, "--model", str(PIRATE), "--rank", "3") != 0
    assert "keeps its rank" in capsys.readouterr().err
    assert run(*arguments, "--base", "multiflora/demo-base") != 0
    assert "--base goes with a PEFT folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    again = ("--model", str(out), *arguments[:4], "--device", "cpu")
    assert run(str(data), "-o", str(tmp_path / "further"), *again) == 0
    first, second = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("out", "further"))
    assert first.keys() == second.keys()
    assert all(0 < (second[name] - first[name]).abs().max() < 0.1 for name in first)
