"""Prepares data sets in a process of its own: tokenizing would slow every answer down.

server thread --PrepareRequest--> prepare_process (no torch, hard limits)
              <--PrepareAnswer--    writes the data sets, ends
"""

import logging
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from multiflora.adapters.child_process import SAME_PATH, answer_of, end_of, start_isolated

from ...errors import RequestRejected
from ..data.config import DataConfig
from ..data.dataset import DatasetDamaged, PreparedDataset
from .job_folder import JobFolder

logger = logging.getLogger(__name__)

_PROGRAM: Final = (
    SAME_PATH + "from multiflora.engine.training.jobs.prepare_process import main; main()"
)
_MAX_LOG_BYTES: Final = 4 << 10


class PreparationFailed(RequestRejected):
    """Files that cannot be trained on; ``param`` names the one, the message its lines."""

    code = "invalid_training_file"


class PrepareLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What preparing the files of one job may cost."""

    memory_bytes: int = 8 << 30
    cpu_seconds: int = 3600
    wall_seconds: int = 2 * 3600
    file_bytes: int = 16 << 30


class BesideFile(msgspec.Struct, frozen=True):
    """A file of supervised rows beside those that are learnt, the folder that its data set goes
    into, and the field of the request that names it."""

    file: str
    folder: str
    param: str


class PrepareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``base`` is the folder with the tokenizer; files and folders are absolute paths."""

    base: str
    end_tokens: tuple[int, ...]
    config: DataConfig
    training_file: str
    training: str
    validation_file: str | None
    validation: str | None
    beside: tuple[BesideFile, ...]
    limits: PrepareLimits


class PrepareAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``complaint`` None: the data sets are in their folders."""

    complaint: str | None = None
    param: str | None = None


class Preparation:
    """Prepares for one base."""

    def __init__(
        self, base: Path, *, end_tokens: frozenset[int], limits: PrepareLimits | None = None
    ) -> None:
        self._base = base
        self._end_tokens = tuple(sorted(end_tokens))
        self._limits = limits or PrepareLimits()

    def prepare(
        self,
        folder: JobFolder,
        config: DataConfig,
        *,
        training_file: Path,
        validation_file: Path | None,
        beside: Sequence[BesideFile] = (),
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Make all data sets in ``folder``; blocks. What is there already is kept.

        Raises ``PreparationFailed``, ``OSError``, and ``InterruptedError`` if ``is_cancelled``.
        """
        folders = [folder.training, *(Path(one.folder) for one in beside)]
        if validation_file is not None:
            folders.append(folder.validation)
        if all(map(_is_whole, folders)):
            return
        folder.clear()
        folder.make()
        request = PrepareRequest(
            base=str(self._base.absolute()),
            end_tokens=self._end_tokens,
            config=config,
            training_file=str(training_file.absolute()),
            training=str(folder.training.absolute()),
            validation_file=None if validation_file is None else str(validation_file.absolute()),
            validation=None if validation_file is None else str(folder.validation.absolute()),
            beside=tuple(beside),
            limits=self._limits,
        )
        answer = self._run(request, is_cancelled)
        if answer.complaint is not None:
            raise PreparationFailed(answer.complaint, param=answer.param)

    def _run(
        self, request: PrepareRequest, is_cancelled: Callable[[], bool] | None
    ) -> PrepareAnswer:
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as complaint:
            question.write(msgspec.json.encode(request))
            question.seek(0)
            try:
                process = start_isolated(_PROGRAM, question=question, complaint=complaint)
                answer, status = answer_of(
                    process, wall_seconds=self._limits.wall_seconds, is_cancelled=is_cancelled
                )
            except TimeoutError:
                raise _too_long(self._limits.wall_seconds, "") from None
            if status != 0:
                text = end_of(complaint, _MAX_LOG_BYTES)
                logger.warning("preparing files ended with status %d: %s", status, text)
                raise self._death(status)
        return msgspec.json.decode(answer, type=PrepareAnswer)

    def _death(self, status: int) -> PreparationFailed:
        if -status in (signal.SIGXCPU, signal.SIGALRM):
            return _too_long(self._limits.cpu_seconds, " of CPU time")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return PreparationFailed(
            f"preparing the files ended with {how}; the machine may be out of memory, so try "
            "again or split the files",
            param="training_file",
        )


def _too_long(seconds: int, kind: str) -> PreparationFailed:
    return PreparationFailed(
        f"preparing the files took over {seconds} s{kind}; split them", param="training_file"
    )


def _is_whole(folder: Path) -> bool:
    try:
        PreparedDataset.open(folder).close()
    except DatasetDamaged:
        return False
    return True
