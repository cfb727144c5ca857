"""Peers in a process and an environment of their own."""

import os
import platform
import sys
from pathlib import Path

import pytest

from benchmarks.peer_process import PeerProcess

ECHO = "tests.benchmarks.echo_side"


def echo(*arguments: str) -> PeerProcess:
    return PeerProcess(Path(sys.executable), ECHO, *arguments)


def test_answers_are_told_from_what_libraries_print() -> None:
    with echo() as peer:
        assert peer.versions["python"] == platform.python_version()
        assert peer.ask("say", [1, 2], {"ä": None}) == ["say", [1, 2], {"ä": None}]
        assert peer.ask("again") == ["again"]


def test_an_error_is_told_and_the_next_question_answered() -> None:
    with echo() as peer:
        with pytest.raises(RuntimeError, match=r"echo_side: ValueError: no such adapter"):
            peer.ask("fail", "no such adapter")
        assert peer.ask("say") == ["say"]


def test_a_peer_that_ends_names_its_status() -> None:
    with pytest.raises(RuntimeError, match="ended with 5"):
        echo("--no-start")
    with echo() as peer, pytest.raises(RuntimeError, match="ended with 3"):
        peer.ask("end")


def test_a_peer_ends_with_its_process() -> None:
    with echo() as peer:
        process = peer._process
        assert process.poll() is None
    assert process.poll() == 0


def test_a_peer_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with PeerProcess(Path(sys.executable), ECHO, environment={"PEER": "echo"}) as peer:
        found = peer.ask("environment")
    assert {**os.environ, "HF_HUB_OFFLINE": "1", "PEER": "echo"}.items() <= found.items()
