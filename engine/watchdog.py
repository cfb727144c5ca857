"""Notices an engine that answers no more, and ends it, so that it is started again.

An engine answers between two steps. One that is stuck inside a step, in whatever code, does not:
its requests would hang for ever, and its process looks alive.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from .errors import EngineError

logger = logging.getLogger(__name__)


async def watch(
    ask: Callable[[], Awaitable[object]],
    kill: Callable[[], None],
    *,
    patience_seconds: float,
    interval_seconds: float | None = None,
) -> None:
    """``ask`` again and again; ``kill`` where no answer comes in time. Ends when cancelled.

    An engine that is not there is somebody else's to start. ``interval_seconds`` between two
    questions are a quarter of the patience by default, but at most 5 s.
    """
    interval = interval_seconds or min(5.0, patience_seconds / 4)
    while True:
        await asyncio.sleep(interval)
        try:
            async with asyncio.timeout(patience_seconds):
                await ask()
        except TimeoutError:
            logger.error("the engine has not answered for %g s; ending it", patience_seconds)
            kill()
        except EngineError:
            continue
