"""Where peers are looked for, and what is said of one that is not there."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import peer_environment
from benchmarks.harness import ROOT
from benchmarks.peer_environment import PeerMissing, peer_python, require_peer_python

INSTALL = ROOT / "benchmarks" / "install_peers.sh"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(peer_environment, "PEERS", tmp_path)
    monkeypatch.delenv("TRL_PYTHON", raising=False)
    return tmp_path


def test_an_environment_of_its_own_is_found(peers: Path) -> None:
    python = peers / "trl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sh")
    # The link itself: what it points to is another environment's.
    assert peer_python("trl") == python


def test_a_variable_goes_first(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (peers / "python").touch()
    monkeypatch.setenv("TRL_PYTHON", str(peers / "python"))
    assert require_peer_python("trl") == peers / "python"
    monkeypatch.setenv("TRL_PYTHON", str(peers / "nowhere"))
    with pytest.raises(PeerMissing, match="TRL_PYTHON names nothing that is there"):
        peer_python("trl")


def test_a_peer_that_is_missing_is_named_with_the_remedy(peers: Path) -> None:
    with pytest.raises(PeerMissing, match="python is missing; `make peers` installs"):
        peer_python("trl")
    with pytest.raises(SystemExit, match="`make peers` installs"):
        require_peer_python("trl")


def test_one_that_cannot_be_installed_is_named_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "installed").touch()
    ran = subprocess.run(
        ["sh", str(INSTALL), "mergekit", "peft"],
        env={**os.environ, "PEERS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "mergekit is unknown; choose peft, trl, vllm or llama.cpp" in ran.stderr
    assert ran.stderr.endswith("install_peers: not installed: mergekit\n")
    assert f"peft is in {tmp_path}/peft" in ran.stdout
