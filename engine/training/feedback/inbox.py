"""Answers on their way into the store, so that none of them waits for a disk."""

import asyncio
import logging
from collections import deque
from typing import Final

from multiflora.adapters.error import RegistryError

from .completion import Completion
from .feedback_store import FeedbackStore

logger = logging.getLogger(__name__)
_MAX_WAITING: Final = 10_000


class CompletionInbox:
    """``put`` costs nothing; what ``flush`` has not written is lost when the server dies.

    All methods belong to one event loop. If the disk fails, the oldest answers are given up.
    """

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        self._waiting: deque[Completion] = deque(maxlen=_MAX_WAITING)
        self._turn = asyncio.Lock()

    def put(self, completion: Completion) -> None:
        self._waiting.append(completion)

    async def flush(self) -> None:
        """Everything that was put before is in the store then, or the log says why not."""
        async with self._turn:
            if not self._waiting:
                return
            batch = list(self._waiting)
            self._waiting.clear()
            try:
                await asyncio.to_thread(self._store.keep, batch)
            except RegistryError:
                logger.exception("%d answers could not be kept; it is tried again", len(batch))
                self._waiting.extendleft(reversed(batch))
