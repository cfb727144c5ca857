"""A library that we are compared with, run by an interpreter of its own and asked through a pipe.

The asking side starts a module of the benchmarks with ``PeerProcess``; that module answers with
``answer_questions``. Both speak lines of JSON. A peer that is not asked waits for a line and takes
no processor time, so that sides can take turns.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TextIO

from .harness import ROOT, versions


class PeerProcess:
    """A peer that is up; ``versions`` are those of its packages.

    ``environment`` is set for it beside the variables of this process.

    Raises ``RuntimeError`` if it ends before it answers, or answers with an error.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # No library may look for anything on a hub.
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )
        try:
            self.versions: dict[str, str] = self._read()
        except RuntimeError:
            self.close()
            raise

    def ask(self, *question: Any) -> Any:
        """What the peer's function makes of the arguments; both travel as JSON."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self._module} ended with {status}; its error is above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._module}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer_questions(answer: Callable[..., Any]) -> None:
    """The peer's side: say what is installed, then answer line by line until input ends."""
    replies = _take_stdout()
    _write(replies, {"result": versions()})
    for line in sys.stdin:
        _write(replies, _answered(answer, json.loads(line)))


def _take_stdout() -> TextIO:
    """Standard output for lines of JSON alone: what libraries print goes to standard error."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return kept


def _answered(answer: Callable[..., Any], question: Sequence[Any]) -> Mapping[str, Any]:
    try:
        return {"result": answer(*question)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _write(replies: TextIO, answer: Mapping[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()
