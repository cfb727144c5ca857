"""uvicorn with a drain: the first signal lets running requests finish, the second ends at once."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, cast

import uvicorn

from .drain import Drain
from .http_protocol import bounded_protocol
from .limits import Limits

logger = logging.getLogger(__name__)

# Time to write the answers that the end of the drain has cut short.
_CLOSING_SECONDS: Final = 2
_MAX_HEADER_BYTES: Final = 256 * 1024
_KEEP_ALIVE_SECONDS: Final = 75


class HttpServer(uvicorn.Server):
    """Serves until it is told to stop; ``stop_engine`` ends what outlives the drain.

    After SIGTERM requests are taken for ``drain_notice_seconds`` more, since routers need a while
    to hear of it.
    """

    def __init__(
        self,
        app: Any,
        *,
        drain: Drain,
        drain_timeout_seconds: float,
        drain_notice_seconds: float = 0.0,
        stop_engine: Callable[[], Awaitable[None]],
        limits: Limits | None = None,
    ) -> None:
        super().__init__(_uvicorn_config(app, limits or Limits()))
        self._drain = drain
        self._drain_timeout_seconds = drain_timeout_seconds
        self._drain_notice_seconds = drain_notice_seconds
        self._stop_engine = stop_engine
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Replace uvicorn's handlers, which close the listener at the first signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def close_gently(self, *, notice_seconds: float = 0.0) -> None:
        """Refuse new requests, wait for the running ones, then exit."""
        if self._draining is None:
            self._drain.announce()
            if not notice_seconds:
                self._drain.begin()
            self._draining = asyncio.ensure_future(self._finish_requests(notice_seconds))

    def _on_signal(self, number: int) -> None:
        if self._draining is not None:
            # The engine process ends by itself when our end of its socket closes.
            os._exit(128 + number)
        logger.info(
            "shutting down; %d requests have %g s to finish",
            self._drain.num_running,
            self._drain_timeout_seconds,
        )
        is_term = number == signal.SIGTERM
        self.close_gently(notice_seconds=self._drain_notice_seconds if is_term else 0.0)

    async def _finish_requests(self, notice_seconds: float) -> None:
        await asyncio.sleep(notice_seconds)
        self._drain.begin()
        is_empty = await self._drain.wait_empty(timeout_seconds=self._drain_timeout_seconds)
        if not is_empty:
            logger.warning("%d requests did not finish in time", self._drain.num_running)
            await self._stop_engine()
            await self._drain.wait_empty(timeout_seconds=_CLOSING_SECONDS)
        self.should_exit = True


def _uvicorn_config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], bounded_protocol(limits)),
        ws="none",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
