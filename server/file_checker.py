"""Checks uploaded training files in the background, one at a time, and records what was found."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from multiflora.adapters.error import RegistryError
from multiflora.engine.training.data.file_check import CheckLimits, check_file
from multiflora.engine.training.data.file_registry import FileRegistry, UnknownFile

logger = logging.getLogger(__name__)


class FileChecker:
    """The work is done in a process of its own; a thread here only waits for it."""

    def __init__(self, files: FileRegistry, *, limits: CheckLimits | None = None) -> None:
        self.files = files
        self._is_closing = threading.Event()
        self._limits = limits
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="check-file")

    def resume(self) -> None:
        """Check what an earlier server did not come to."""
        for file_id in self.files.unchecked():
            self.submit(file_id)

    def submit(self, file_id: str) -> None:
        """Have the file checked soon; its status says when that is done."""
        self._threads.submit(self._check, file_id)

    def close(self) -> None:
        """Give up the running check; it and those that wait are for the next server."""
        self._is_closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _check(self, file_id: str) -> None:
        try:
            found = check_file(
                self.files.path(file_id), self._limits, is_cancelled=self._is_closing.is_set
            )
            complaint = found.complaint
            status = "processed" if complaint is None else "error"
            self.files.settle(file_id, status, complaint)
        except UnknownFile:
            logger.debug("%s was deleted before its check", file_id)
        except InterruptedError:
            logger.info("the check of %s is left to the next start", file_id)
        except (RegistryError, OSError):
            logger.exception("checking %s failed; it is tried again at the next start", file_id)
