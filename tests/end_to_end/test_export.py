"""What `multiflora export` writes is served, and says what base and adapter said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Server, command

PROMPTS = [list(range(20, 57)), list(range(100, 111)), [7, 8, 9]]
FLAGS = ("--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "8MiB")


def answers(server: Server, model: str) -> list[str]:
    return [
        server.client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=12,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        .choices[0]
        .text
        for prompt in PROMPTS
    ]


def test_an_exported_model_is_served_as_base_and_adapter(
    tiny_server: Server,
    start_server: Callable[..., Server],
    model_folder: Callable[[str], Path],
    adapter_folders: Callable[[str], dict[str, Path]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    adapter = adapter_folders("llama")["rank-16-patterns"]
    export = ("export", "--adapter", str(adapter), "--model", str(model_folder("llama")))
    subprocess.run(
        command(*export, "--dtype", "float32", "-o", str(out)),
        check=True,
        capture_output=True,
        # Compared in float32, as it is served below, and not in a processor's bfloat16.
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
    )
    report = json.loads((out / "export_report.json").read_text())
    assert report["logits"]["max_difference"] < 1e-3
    server = start_server(
        str(out), *("--served-model-name", "merged", "--quantization", "none"), *FLAGS
    )
    expected = answers(tiny_server, "rank-16-patterns")
    assert expected != answers(tiny_server, "base")
    assert answers(server, "merged") == expected
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="kills by signal")
def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    arguments = ("--adapter", "pirate", "-o", str(out), "--data-dir", str(tmp_path / "data"))
    process = subprocess.Popen(
        command("export", *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob(".merged-*/*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert not list(tmp_path.glob(".merged-*/export_report.json"))
    subprocess.run(command("export", *arguments), check=True, capture_output=True)
    assert (out / "config.json").is_file()
