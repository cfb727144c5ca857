"""A server as a user starts it, and a client that costs next to nothing, for load tests."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import psutil

_START_SECONDS: Final = 180


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """``pid`` is the API process; the engine and the others are its children."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resources(self) -> dict[str, float]:
        """Memory by process in MiB, and open files of the API process."""
        api = psutil.Process(self.pid)
        found = {"api_mib": _mib(api), "api_open_files": float(api.num_fds())}
        for child in api.children():
            with suppress(psutil.Error):
                line = " ".join(child.cmdline())
                name = "engine" if "engine.process" in line else "renderer"
                found[f"{name}_mib"] = _mib(child)
                found[f"{name}_open_files"] = float(child.num_fds())
        return found

    def metrics(self) -> dict[str, float]:
        """Sums of all families by name."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").decode().splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def get(self, path: str) -> bytes:
        headers = {"cache-control": "no-cache"}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def is_ready(self, path: str = "/ready") -> bool:
        try:
            self.get(path)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def tree(self) -> list[psutil.Process]:
        """The process and all that descend from it; none once it has ended."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(*flags: str, threads: int | None = 1) -> Iterator[ServerProcess]:
    """``multiflora serve`` with the embedded demo and ``flags``, on a free port, ready.

    The engine computes with ``threads``; None leaves the choice to the environment.
    """
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "multiflora.server.cli", "serve", *flags]
        command += ["--data-dir", data, "--log-level", "error"]
        with running_process(command, environment=own) as server:
            yield server


@contextmanager
def running_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    ready: str = "/ready",
    start_seconds: float = _START_SECONDS,
    log: Path | None = None,
) -> Iterator[ServerProcess]:
    """A server that is told its port with ``--port`` at the end, once it answers at ``ready``.

    What it prints goes to ``log``, if there is one; otherwise its errors are shown. Raises
    ``RuntimeError`` with what ``log`` complains of for one that does not start.
    """
    port = free_port()
    with log.open("wb") if log else nullcontext(subprocess.DEVNULL) as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            env={**os.environ, **environment},
        )
        server = ServerProcess(process.pid, port)
        try:
            deadline = time.monotonic() + start_seconds
            while not server.is_ready(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start{_complaint(log)}")
                time.sleep(0.1)
            yield server
        finally:
            _end(process, server.tree())


def _complaint(log: Path | None) -> str:
    """The first exception that a log shows, for others follow from it; or its last line."""
    text = log.read_text(errors="replace").strip() if log else ""
    found = re.search(r"\b\w*(?:Error|Exception): .+", text)
    said = found[0] if found else text.rpartition("\n")[2]
    return f": {said}" if said else ""


def _end(process: "subprocess.Popen[bytes]", tree: Sequence[psutil.Process]) -> None:
    """Ask it to end, and end what it leaves behind."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in tree:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    psutil.wait_procs(tree, timeout=10)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One HTTP/1.1 connection that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, method: str, path: str, body: object, headers: Mapping[str, str]) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join((*lines, "", "")).encode() + content)

    async def ask(
        self, method: str, path: str, body: object = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read the whole answer."""
        self.send(method, path, body, headers or {})
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if "chunked" in fields.get("transfer-encoding", ""):
            content = await self._chunks()
        else:
            content = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), fields, content)

    async def _chunks(self) -> bytes:
        content = b""
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            content += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return content


@asynccontextmanager
async def connected(server: ServerProcess) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _mib(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)
