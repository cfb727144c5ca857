"""Servers of benchmarks start, say why they do not, leave nothing behind, and are watched."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.serving.memory_watch import MemoryWatch
from benchmarks.serving.server_process import ServerProcess, running_process

SERVE = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
class Ready(http.server.SimpleHTTPRequestHandler): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Ready).serve_forever()
"""


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            "ValueError: no such base\\nRuntimeError: it failed; see above",
            "ValueError: no such base",
        ),
        ("starting\\nout of luck", "out of luck"),
        ("", "did not start$"),
    ],
)
def test_a_server_that_ends_at_once_is_quoted(said: str, complaint: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f"printf '{said}'; exit 3"]
    with (
        pytest.raises(RuntimeError, match=complaint),
        running_process(command, environment={}, log=tmp_path / "log"),
    ):
        pass


def test_a_server_ends_with_its_children(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE]
    with running_process(command, environment={}, ready="/", log=tmp_path / "log") as server:
        tree = server.tree()
        assert len(tree) == 2
    assert not any(process.is_running() and process.status() != "zombie" for process in tree)
    assert server.tree() == []


def test_a_peak_is_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"now": 300 << 20}
    monkeypatch.setattr("benchmarks.serving.memory_watch._resident", lambda process: sizes["now"])
    with MemoryWatch(ServerProcess(os.getpid(), 0)) as watch:
        monkeypatch.setattr(ServerProcess, "tree", lambda self: [psutil.Process()])
        sizes["now"] = 100 << 20
        watch.begin("cell")
        sizes["now"] = 120 << 20
        assert watch.end("cell") == 120
    assert watch.peak_mib >= 300


def test_processor_time_is_that_of_the_whole_tree() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        spent = MemoryWatch(ServerProcess(child.pid, 0)).cpu_seconds()
        child.kill()
    assert 0 <= spent < 1
    assert MemoryWatch(ServerProcess(child.pid, 0)).cpu_seconds() == 0
