"""`multiflora export`: what is exported, what is printed, and what is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.engine.export import probe
from multiflora.server import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "has_fast_bfloat16", lambda: False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command into ``out``; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main(
                [
                    *("export", "--data-dir", str(tmp_path / "data")),
                    *("-o", str(tmp_path / "out"), *arguments),
                ]
            )
        shown = capsys.readouterr()
        return int(exit.value.code or 0), shown.out, shown.err

    return run


def test_a_demo_adapter_is_exported_by_name(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--adapter", "pirate", "--dtype", "float16", "--max-shard-size", "1MB")
    assert code == 0
    assert "of the weights it changes" in out
    assert "float16 keeps 1.0000 of the delta" in out
    assert "100.0% of 192 greedy tokens agree" in out
    assert f"multiflora serve {tmp_path / 'out'} --quantization none" in out
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert report["base"] == {"name": "multiflora/demo-base", "weights": "quantized"}
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_requantizing_prints_the_loss_and_how_to_serve(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--adapter", "engine/demo/adapters/pirate", *("--requantize", "nf4"))
    assert code == 0
    assert "nf4 keeps 0.9557 of the delta" in out
    assert out.endswith(f"multiflora serve {tmp_path / 'out'}\n")


def test_no_verify_is_said(run: Run) -> None:
    code, out, _ = run("--adapter", "pirate", "--no-verify")
    assert code == 0
    assert "not compared (--no-verify)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "nobody"], "no adapter is named 'nobody'"),
        (["--adapter", "./nowhere"], "adapter folder nowhere does not exist"),
        (["--adapter", "pirate", "--model", "nowhere"], "neither an existing folder nor a hub id"),
        (["--adapter", "pirate", "--base", "original"], "use --base quantized"),
        (
            ["--adapter", "pirate", "--requantize", "nf4", "--min-delta-kept", "0.99"],
            "keeps 0.956 of the adapter, below 0.99",
        ),
    ],
)
def test_refusals_are_one_line(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    assert error.startswith("multiflora: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "pirate", "--max-shard-size", "5 bananas"], "is not a size"),
        (["--adapter", "pirate", "--max-shard-size", "0"], "must be at least 1"),
        (["--adapter", "pirate", "--adapter-weight", "nan"], "must be a finite number"),
        (["--adapter", "pirate", "--requantize", "int3"], "invalid choice"),
    ],
)
def test_usage_errors_are_one_line(run: Run, arguments: list[str], message: str) -> None:
    code, _, error = run(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_an_existing_output_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, _, error = run("--adapter", "pirate")
    assert code == 1
    assert "choose another folder" in error
