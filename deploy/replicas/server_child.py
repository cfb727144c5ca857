"""An ordinary server as a child process on a loopback port, with data of its own."""

import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_START_SECONDS: Final = 1800
_STOP_SECONDS: Final = 60
_MAX_SLOTS: Final = 256


class ServerChild:
    """Started when made, and gone when this process is; ``wait_until_ready`` comes next."""

    def __init__(self, flags: Sequence[str], *, data_root: Path) -> None:
        folder, lock = _take_slot(data_root)
        self.url = f"http://127.0.0.1:{_free_port()}"
        place = ["--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]]
        place += ["--data-dir", str(folder)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deploy.replicas.child", "serve", *flags, *place],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # The slot is free when the last of both is gone, and not while the child drains.
                pass_fds=[lock],
            )
        finally:
            os.close(lock)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Raises ``RuntimeError`` if the server ends, or is not ready in half an hour."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if not self.is_alive:
                raise RuntimeError(f"the server ended with {self._process.returncode}; see its log")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready in {_START_SECONDS} s")
            time.sleep(0.1)

    def stop(self) -> None:
        """Drain."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _take_slot(root: Path) -> tuple[Path, int]:
    """The first data folder below ``root`` that no server uses, and the lock that says so.

    A replica that is started again finds what an earlier one prepared.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number in range(_MAX_SLOTS):
        lock = os.open(root / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return root / str(number), lock
    raise RuntimeError(f"{_MAX_SLOTS} servers use folders of {root}; give others another")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
