"""The pieces of the comparison over HTTP, and a run of it against our own server in small."""

import json
import subprocess
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer_environment import PeerMissing
from benchmarks.report.record import Record
from benchmarks.serving import bench_http_peers, peer_server
from benchmarks.serving.bench_http_peers import (
    ADAPTERS,
    CONCURRENCIES,
    Cell,
    Peer,
    check_adapters,
    compare,
    plan,
    report_plan,
    start,
    what_is_wrong,
)
from benchmarks.serving.peer_files import PeerFiles
from benchmarks.serving.peer_server import LAUNCHES, Launch, Sizing, last_line
from multiflora.server.load_test.outcome import Outcome

CELL = Cell(prompt_tokens=64, output_tokens=8, concurrency=2, adapters=2)
WHOLE = Outcome(name="base", seconds=1.0, num_tokens=8, num_prompt_tokens=64)


@pytest.fixture
def files(tmp_path: Path) -> PeerFiles:
    base = tmp_path / "base"
    base.mkdir()
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"num_hidden_layers": 3, "vocab_size": 1_000}
    (base / "config.json").write_text(json.dumps(sizes))
    adapters = {name: tmp_path / name for name in ("one", "two")}
    return PeerFiles(base, adapters, tmp_path / "gguf")


@pytest.fixture
def sizing(tmp_path: Path) -> Sizing:
    return Sizing(threads=3, concurrency=4, length=100, scratch=tmp_path / "scratch")


def after(launch: Launch, flag: str) -> str:
    return launch.command[launch.command.index(flag) + 1]


def test_all_servers_get_the_same_threads_and_room(
    files: PeerFiles, sizing: Sizing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, name in (("LLAMA_SERVER", "llama-server"), ("VLLM_PYTHON", "python")):
        (tmp_path / name).touch()
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "llama-quantize").touch()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setattr(peer_server, "_printed", lambda command, pattern: "1.2")
    monkeypatch.setattr(peer_server, "write_gguf_base", lambda files, form, **_: files.gguf / form)
    monkeypatch.setattr(peer_server, "write_gguf_adapters", lambda files, **_: files.gguf_adapters)
    made = {name: launch(files, sizing) for name, launch in LAUNCHES.items()}

    assert {launch.environment["OMP_NUM_THREADS"] for launch in made.values()} == {"3"}
    ours, llama, vllm = made["multiflora"], made["llama.cpp-q4_0"], made["vllm-cpu"]
    assert after(ours, "--threads") == after(llama, "--threads") == "3"
    assert sizing.context == 256
    assert after(ours, "--max-model-len") == after(vllm, "--max-model-len") == "256"
    assert after(llama, "--ctx-size") == str(5 * 256)
    values = 5 * 256 * 3 * 2 * 64
    assert after(ours, "--kv-cache-memory") == str(4 * values)
    assert after(vllm, "--kv-cache-memory-bytes") == str(2 * values)
    assert after(llama, "--lora") == f"{files.gguf / 'one.gguf'},{files.gguf / 'two.gguf'}"
    assert f"two={files.adapters['two']}" in vllm.command
    assert made["llama.cpp-iq4_nl"].command[2] == str(files.gguf / "IQ4_NL")
    assert "--quantize-head" in made["multiflora-quantized-head"].command
    assert "--quantize-head" not in ours.command
    # Adapters that a request does not name count as zero there.
    assert llama.fields["base"]["lora"] == [{"id": 0, "scale": 0.0}]
    assert llama.fields["two"]["lora"] == [{"id": 1, "scale": 1.0}]


@pytest.mark.parametrize("name", ["llama.cpp-q4_0", "llama.cpp-iq4_nl", "vllm-cpu"])
def test_a_peer_that_is_not_there_is_skipped_by_name(
    name: str, files: PeerFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("LLAMA_SERVER", "VLLM_PYTHON"):
        monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    asked = Namespace(
        servers=[name], prompt_tokens=[8], output_tokens=4, concurrency=[1], threads=1
    )
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        assert not start(stack, files, asked, scratch=tmp_path, skipped=skipped)
    assert "names nothing that is there; `make peers` installs" in skipped[name]


def test_files_that_cannot_be_converted_skip_their_server(
    files: PeerFiles, sizing: Sizing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("llama-server", "llama-quantize"):
        (tmp_path / name).touch()
    monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "llama-server"))
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))

    def fail(*_: object, **__: object) -> Path:
        raise subprocess.CalledProcessError(1, "convert", stderr="a\n/some/where.py: no such model")

    monkeypatch.setattr(peer_server, "write_gguf_base", fail)
    with pytest.raises(PeerMissing, match=r"cannot be made: where\.py: no such model"):
        LAUNCHES["llama.cpp-q4_0"](files, sizing)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("first\nsecond\n\n", "second"),
        ("no /usr/lib/python3/x.so and /tmp/y: z", "no x.so and y: z"),
        ("GET http://127.0.0.1:1/v1/models 1/2", "GET http://127.0.0.1:1/v1/models 1/2"),
        ("", ""),
    ],
)
def test_reasons_name_no_folders(text: str, shown: str) -> None:
    assert last_line(text) == shown


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, ""),
        ({"num_tokens": 7}, "8 tokens of each answer were asked for, and 7, 8 were counted"),
        ({"num_prompt_tokens": 0}, "64 tokens of each prompt were asked for, and 0, 64"),
        ({"error": "404 model_not_found"}, "1 of 2 requests failed: 404 model_not_found"),
    ],
)
def test_answers_have_the_tokens_that_were_asked(changes: dict[str, Any], wrong: str) -> None:
    assert what_is_wrong(CELL, [WHOLE, replace(WHOLE, **changes)]).startswith(wrong)
    assert bool(what_is_wrong(CELL, [WHOLE, replace(WHOLE, **changes)])) == bool(wrong)


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        (["a", "b", "c", "a"], None),
        (["a", "a", "c", "a"], "base and one answer alike: 'a'"),
        (["a", "b", "b", "a"], "one and two answer alike"),
        (["a", "b", "c", "d"], "the same prompt in two ways"),
    ],
)
def test_a_server_that_serves_the_base_for_an_adapter_is_found(
    answers: list[str], complaint: str | None, files: PeerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Launch(
        command=(), environment={}, ready="/", version="", form="", fields={"one": {"lora": 1}}
    )
    peer: Any = Peer(launch, None, None, 0.0, 0)  # pyright: ignore[reportArgumentType]
    bodies: list[dict[str, Any]] = []
    monkeypatch.setattr(
        bench_http_peers, "_answer", lambda server, body: bodies.append(body) or answers.pop(0)
    )
    if complaint:
        with pytest.raises(RuntimeError, match=complaint):
            check_adapters(peer, files, prompt_tokens=5)
    else:
        check_adapters(peer, files, prompt_tokens=5)
    assert [body["model"] for body in bodies] == ["base", "one", "two", "base"]
    assert len({tuple(body["prompt"]) for body in bodies}) == 1
    assert ["lora" in body for body in bodies] == [False, True, False, False]


def test_ours_is_set_beside_each_peer_by_cell_and_failures_beside_none() -> None:
    kept = {"prompt_tokens": 64, "output_tokens": 64, "concurrency": 1, "adapters": 8}
    cells = [
        {**kept, "server": server, "tokens_per_second": speed, "invalid": invalid}
        for server, speed, invalid in (
            ("multiflora", 30.0, ""),
            ("multiflora-quantized-head", 40.0, ""),
            ("llama.cpp-q4_0", 20.0, ""),
            ("vllm-cpu", 10.0, "2 of 2 requests failed"),
        )
    ]
    (found,) = compare(cells)
    assert found == {
        **kept,
        "ratios": {
            "multiflora / llama.cpp-q4_0": 1.5,
            "multiflora-quantized-head / llama.cpp-q4_0": 2.0,
        },
    }


def test_the_report_has_a_row_for_what_was_not_asked() -> None:
    asked = Namespace(prompt_tokens=[64], output_tokens=4, concurrency=[2], adapters=[0, 8])
    assert plan(asked) == [Cell(64, 4, 2, 0), Cell(64, 4, 2, 8)]
    shown = report_plan(asked)
    assert len(shown) == (len(CONCURRENCIES) + 1) * len(ADAPTERS)
    assert set(plan(asked)) < set(shown)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_our_own_server_is_measured_in_small(
    smoke_run: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_http_peers, "PEERS", tmp_path / "peers")
    figures = smoke_run(bench_http_peers.main, "--smoke", "--servers", "multiflora").figures
    assert not figures["skipped"]
    assert [cell["adapters"] for cell in figures["cells"]] == [0, 2]
    for cell in figures["cells"]:
        assert cell["invalid"] == ""
        assert cell["tokens"] == cell["requests"] * 8
        assert cell["peak_mib"] > 0
