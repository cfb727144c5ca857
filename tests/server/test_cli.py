"""The command line: what is said, where, and with which exit code."""

import os
import socket
import subprocess
import sys

import pytest

from multiflora.engine.errors import StartupError
from multiflora.server import cli


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MULTIFLORA_")]:
        monkeypatch.delenv(name)
    # A start writes this one for the engine process; setting it here makes pytest take it back.
    monkeypatch.setenv("MULTIFLORA_LOG_LEVEL", "info")


@pytest.fixture
def run(capsys):
    """Run one command; returns exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            cli.main(list(arguments))
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def served(monkeypatch):
    """Catch the settings instead of serving them."""
    from multiflora.server import serve

    caught = []
    monkeypatch.setattr(serve, "serve", lambda settings: caught.append(settings) or 0)
    return caught


def test_version(run):
    code, out, _ = run("version")

    assert code == 0
    assert out.startswith("multiflora ")


def test_flags_become_settings(run, served):
    code, _, _ = run(
        *("serve", "some/model", "--adapter", "a=/x", "--adapter", "b=/y"),
        *("--port", "0", "--kv-cache-memory", "1GiB", "--dry-run", "--no-quantize-head"),
        *("--lora-modules", "c=/z", "d=/w"),
    )

    settings = served[0]
    assert code == 0
    assert settings.model == "some/model"
    assert [adapter.name for adapter in settings.adapters] == ["a", "b", "c", "d"]
    assert (settings.port, settings.kv_cache_memory) == (0, 2**30)
    assert (settings.dry_run, settings.quantize_head) == (True, False)


def test_no_model_is_the_demo(run, served):
    run("serve")

    assert served[0].model is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--prot=3"], "did you mean --port?"),
        (["serve", "--port", "x"], "--port: 'x' is not a whole number"),
        (["serve", "--adapter", "x"], "--adapter: 'x' is not NAME=PATH"),
        (["serve", "--port", "70000"], "between 0 and 65535"),
        (["sevre"], "invalid choice: 'sevre'"),
        ([], "COMMAND"),
        (["serve", "--config", "absent.yaml"], "absent.yaml cannot be read"),
    ],
)
def test_bad_settings_are_one_line_and_exit_2(run, arguments, message):
    code, out, err = run(*arguments)

    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_failing_start_is_one_line_and_exit_1(run, monkeypatch):
    from multiflora.server import serve

    def fail(settings):
        raise StartupError("no luck; try again")

    monkeypatch.setattr(serve, "serve", fail)

    assert run("serve") == (1, "", "multiflora: error: no luck; try again\n")


def test_a_port_in_use_is_named_before_anything_is_loaded(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = run("serve", "not/loaded", "--port", port, "--data-dir", str(tmp_path))

    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in err


def test_an_unwritable_data_directory(run, tmp_path):
    (tmp_path / "file").touch()

    code, _, err = run("serve", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))

    assert code == 1
    assert "cannot be written" in err
    assert "--data-dir" in err


def test_a_model_without_tokenizer(run, model, tmp_path):
    (model / "tokenizer.json").unlink()

    code, _, err = run("serve", str(model), "--port", "0", "--data-dir", str(tmp_path))

    assert code == 1
    assert "has no tokenizer.json" in err


def test_a_bad_adapter_is_named(run, model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()

    code, _, err = run(
        *("serve", str(model), "--port", "0", "--data-dir", str(tmp_path / "data")),
        *("--adapter", f"mine={adapter}"),
    )

    assert code == 1
    assert "adapter 'mine' from" in err


def test_an_adapter_with_the_name_of_the_base(run, model, tmp_path):
    code, _, err = run(
        *("serve", str(model), "--port", "0", "--data-dir", str(tmp_path / "data")),
        *("--adapter", f"model={tmp_path}"),
    )

    assert code == 1
    assert "--served-model-name" in err


def test_too_little_memory(run, model, tmp_path):
    code, _, err = run(
        *("serve", str(model), "--dry-run", "--kv-cache-memory", "900TiB"),
        *("--data-dir", str(tmp_path)),
    )

    assert code == 1
    assert "--kv-cache-memory" in err


def test_a_dry_run_prints_the_plan(run, model, tmp_path):
    code, out, _ = run("serve", str(model), "--dry-run", "--data-dir", str(tmp_path))

    assert code == 0
    assert "KV cache" in out


def test_the_api_process_needs_neither_torch_nor_transformers():
    script = """
import sys
import multiflora.server.cli, multiflora.server.serve, multiflora.server.app
heavy = {"torch", "transformers", "bitsandbytes", "triton", "peft"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
