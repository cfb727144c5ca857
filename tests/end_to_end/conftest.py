"""A real server in its own process, as a user starts it."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

START_SECONDS = 150
# A client of its own for each request would read all certificates each time.
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))
atexit.register(HTTP.close)


@dataclass
class Server:
    """A running ``multiflora serve``."""

    process: subprocess.Popen[str]
    url: str
    client: openai.OpenAI

    @property
    def engine(self) -> psutil.Process:
        """The engine process."""
        (child,) = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "multiflora.engine.process" in child.cmdline()
        ]
        return child

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        page = HTTP.get(f"{self.url}/metrics", headers={"cache-control": "no-cache"})
        lines = page.text.splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def wait(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        raise AssertionError("the condition never came true")

    def is_ready(self) -> bool:
        try:
            return HTTP.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "multiflora.server.cli", *arguments]


@pytest.fixture(scope="session")
def start_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Server]]:
    """``start_server("MODEL", "--flag", ...)`` -> a server that is ready."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        port = free_port()
        process = subprocess.Popen(
            command("serve", *arguments, "--port", str(port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "MULTIFLORA_DATA_DIR": str(tmp_path_factory.mktemp("data"))},
        )
        url = f"http://127.0.0.1:{port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        server = Server(process, url, client)
        started.append(server)
        server.wait(server.is_ready)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
        server.client.close()


@pytest.fixture(scope="session")
def tiny_arguments(
    model_folder: Callable[..., Path], adapter_folders: Callable[[str], dict[str, Path]]
) -> list[str]:
    """The tiny llama as ``base`` with all its adapters."""
    adapters = [f"{name}={path}" for name, path in adapter_folders("llama").items()]
    return [
        str(model_folder("llama")),
        *("--served-model-name", "base"),
        *("--lora-modules", *adapters),
        *("--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "8MiB"),
    ]


@pytest.fixture(scope="session")
def tiny_server(start_server: Callable[..., Server], tiny_arguments: list[str]) -> Server:
    return start_server(*tiny_arguments)
