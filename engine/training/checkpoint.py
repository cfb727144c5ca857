"""A run's whole state on disk: factors, moments and where it is; written all or nothing.

    <folder>/step-00000012/state.safetensors    VALUES, float32, and what the optimizer keeps
                           state.json           RunState, and what the run was made of

Random streams and the order of the data are functions of the step, so they need no place here.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multiflora.adapters import durable
from multiflora.adapters.tensor_file import write_tensors
from multiflora.kernels.single_thread import compute_alone

from .error import CheckpointMismatch

STATE_NAME = "state.json"
TENSORS_NAME = "state.safetensors"
VALUES = "values"
_INCOMING = ".incoming-"
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run is: ``num_worse`` evaluations were made since that of ``best_step``.

    ``replay_taken`` rows were replayed, ``replay_owed`` of the next is due; ``replay_loss`` is that
    of held-out replay rows, last and at first.
    """

    step: int = 0
    num_tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    num_worse: int = 0
    replay_share: float | None = None
    replay_owed: float = 0.0
    replay_taken: int = 0
    replay_loss: float | None = None
    replay_first_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a run needs to go on: the factors under ``VALUES``, float32 [num_elements], and
    the optimizer's tensors by their names, all on the CPU."""

    state: RunState
    tensors: Mapping[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one run. ``identity`` says what it was made of: settings and digests."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, keep: int) -> None:
        durable.make_folder(path)
        self.path = path
        # As it will be read back: tuples become lists, keys become strings.
        self._identity: Mapping[str, Any] = json.loads(json.dumps(identity))
        self._keep = keep
        for leftover in path.glob(".*"):
            shutil.rmtree(leftover)

    def folder(self, step: int) -> Path:
        """Where the checkpoint after ``step`` is, or would be."""
        return self.path / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order."""
        found = (_STEP_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def write(self, snapshot: Snapshot) -> Path:
        """Write durably, then drop old checkpoints but the best. Raises ``OSError``."""
        step = snapshot.state.step
        staged = self.path / f"{_INCOMING}{step}"
        staged.mkdir()
        write_tensors(staged / TENSORS_NAME, dict(snapshot.tensors), {"format": "pt"})
        document = {"state": asdict(snapshot.state), "identity": self._identity}
        durable.write(staged / STATE_NAME, json.dumps(document, indent=1).encode())
        durable.sync(staged)
        target = self.folder(step)
        if not target.is_dir():
            os.rename(staged, target)
        durable.sync(self.path)
        self._prune(snapshot.state)
        return target

    def read(self, step: int) -> Snapshot:
        """Raises ``CheckpointMismatch`` for a damaged checkpoint or one of another run."""
        folder = self.folder(step)
        try:
            document = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
            state, identity = RunState(**document["state"]), document["identity"]
            tensors = load_file(folder / TENSORS_NAME)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointMismatch(
                f"{folder} is damaged ({error}); remove it to go on from an earlier one"
            ) from error
        self._compare(folder, identity)
        return Snapshot(state, tensors)

    def _compare(self, folder: Path, identity: Mapping[str, Any]) -> None:
        for name in sorted({*identity, *self._identity}):
            if identity.get(name) != self._identity.get(name):
                raise CheckpointMismatch(
                    f"{folder} was made with another {name} ({identity.get(name)}, this run has "
                    f"{self._identity.get(name)}); start in an empty folder"
                )

    def _prune(self, state: RunState) -> None:
        steps = self.steps()
        for step in set(steps) - {*steps[-self._keep :], state.best_step}:
            durable.remove_folder(self.folder(step))


class CheckpointWriter:
    """Writes in a thread: a disk may take seconds, and nobody should wait for it in a quantum."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=compute_alone
        )
        self._pending: Future[Path] | None = None

    def start(self, snapshot: Snapshot) -> None:
        assert self._pending is None
        self._pending = self._thread.submit(self._folder.write, snapshot)

    @property
    def is_pending(self) -> bool:
        """Whether a write was started whose end nobody has seen."""
        return self._pending is not None

    @property
    def is_busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def finish(self) -> Path:
        """Wait for the write and return its folder. Raises ``OSError``."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown()


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later steps do not change."""
    return tensor.detach().to("cpu", copy=True)
