"""Where the others are that we are compared with, each in an environment of its own.

``install_peers.sh`` puts them into ``PEERS_DIR``, by default ``.peers`` in the repository, where
the random weights of comparisons are kept too. An environment variable of a peer's own
(``PEFT_PYTHON``, ``TRL_PYTHON``, ``VLLM_PYTHON``, ``LLAMA_SERVER``, ``LLAMA_CPP``) goes first.
"""

import os
import sys
from pathlib import Path
from typing import Final

from .harness import ROOT

PEERS: Final = Path(os.environ.get("PEERS_DIR") or ROOT / ".peers")


class PeerMissing(Exception):
    """Somebody to compare with is not here; the message says what is, and what to do."""


def peer_python(name: str) -> Path:
    """The interpreter that ``name`` is installed for. Raises ``PeerMissing``."""
    return find_peer(f"{name.upper()}_PYTHON", PEERS / name / "bin" / "python")


def require_peer_python(name: str) -> Path:
    """The same, for a program that is nothing without it: ends it with the reason."""
    try:
        return peer_python(name)
    except PeerMissing as error:
        sys.exit(str(error))


def find_peer(variable: str, default: Path) -> Path:
    """What ``variable`` names, or ``default``. Raises ``PeerMissing`` if it is not there."""
    named = os.environ.get(variable)
    path = Path(named or default)
    if not path.exists():
        what = f"{variable} names nothing that is there" if named else f"{path.name} is missing"
        raise PeerMissing(f"{what}; `make peers` installs what is compared with, see {variable}")
    # No resolving: the python of an environment is a link out of it.
    return path.absolute()
