"""Bounds on what a client may send, enforced before a request is read."""

import asyncio
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multiflora.engine.errors import RequestRejected

from .access.caller import key_of
from .errors import HeaderTooLarge, RequestTooLarge, UploadTimeout, error_response
from .held_body import HeldBodies
from .refusal import QueueFull

_KIB = 1024
_MIB = 1024 * _KIB
_HOST: Final = re.compile(rb"[A-Za-z0-9._:\[\]-]*")
_UPLOADS: Final = re.compile(
    r"(?P<files>POST /v1/files)|POST /v1/adapters|PUT /v1/adapters/[^/]+", re.DOTALL
)


class MalformedHeader(RequestRejected):
    """A header that a proxy before the server may have understood in another way."""

    code = "invalid_header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All bounds of the HTTP side."""

    max_body_bytes: int = 8 * _MIB
    max_upload_bytes: int = 2048 * _MIB
    max_file_bytes: int = 512 * _MIB
    # Bodies in memory, of all requests together.
    max_held_bytes: int = 512 * _MIB
    max_header_bytes: int = 64 * _KIB
    max_headers: int = 100
    max_sequences: int = 256
    max_choices: int = 16
    # Whether fields that nobody knows are refused, not only named in the answer.
    refuses_unknown_fields: bool = False
    # A body may stand still for so long, and must come faster than this on the whole.
    body_idle_seconds: float = 30.0
    body_bytes_per_second: int = 1024
    header_seconds: float = 30.0
    # How long an answer may wait for its client to read any of it.
    stall_seconds: float = 60.0
    max_connections: int = 4096
    # How long an upload may stand still.
    upload_idle_seconds: float = 30.0


class RequestLimitMiddleware:
    """Answers 413 and 431 in the API's own envelope.

    Starlette's ``max_body_size`` replaces any answer to an oversized request by plain text.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held = HeldBodies(limits.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            upload = self._upload_limit(scope)
            limit = self._limits.max_body_bytes if upload is None else upload
            self._check_headers(scope["headers"], limit)
        except (HeaderTooLarge, MalformedHeader, RequestTooLarge) as error:
            await self._skip_body(receive)
            response = error_response(error)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        with self._held.body() as hold:

            def take(size: int, received: int) -> None:
                _check_size(received, limit)
                if upload is None:
                    hold(size, key_of(scope))

            await self._app(scope, self._bounded(receive, take), send)

    def _upload_limit(self, scope: Scope) -> int | None:
        """Only what goes to the disk as it arrives may be larger than what memory can hold."""
        kind = Headers(scope=scope).get("content-type", "")
        found = _UPLOADS.fullmatch(f"{scope['method']} {scope['path']}")
        if found is None or not kind.startswith("multipart/"):
            return None
        is_file = found["files"] is not None
        return self._limits.max_file_bytes if is_file else self._limits.max_upload_bytes

    def _check_headers(self, headers: Iterable[tuple[bytes, bytes]], limit: int) -> None:
        headers = list(headers)
        size = sum(len(name) + len(value) for name, value in headers)
        if size > self._limits.max_header_bytes or len(headers) > self._limits.max_headers:
            raise HeaderTooLarge(
                f"the headers have {size} bytes in {len(headers)} lines; at most "
                f"{self._limits.max_header_bytes} bytes in {self._limits.max_headers} are accepted"
            )
        found = dict(headers)
        if not _HOST.fullmatch(found.get(b"host", b"")):
            raise MalformedHeader("the Host header is no name or address, with or without a port")
        declared = found.get(b"content-length")
        if declared is None:
            return
        if b"transfer-encoding" in found:
            raise MalformedHeader(
                "Content-Length and Transfer-Encoding contradict each other; send one of them"
            )
        if declared.isdigit():
            _check_size(int(declared), limit)

    def _bounded(self, receive: Receive, take: Callable[[int, int], None]) -> Receive:
        """``take`` is told the size of each piece, and that of all; it may refuse them."""
        received, is_whole = 0, False
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def receive_bounded() -> Message:
            nonlocal received, is_whole
            if is_whole:
                return await receive()
            allowed = self._limits.body_idle_seconds + received / self._limits.body_bytes_per_second
            idle = loop.time() + self._limits.body_idle_seconds
            try:
                async with asyncio.timeout_at(min(idle, started + allowed)):
                    message = await receive()
            except TimeoutError:
                raise UploadTimeout("the request body did not come in time") from None
            size = len(message.get("body", b""))
            received += size
            is_whole = not message.get("more_body", False)
            try:
                take(size, received)
            except (RequestTooLarge, QueueFull):
                if not is_whole:
                    await self._skip_body(receive)
                raise
            return message

        return receive_bounded

    async def _skip_body(self, receive: Receive) -> None:
        """Read on, up to a bound: a client that is still sending would miss the answer."""
        limit, skipped = 8 * self._limits.max_body_bytes, 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.body_idle_seconds):
                while skipped <= limit:
                    message = await receive()
                    skipped += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise RequestTooLarge(
            f"the request body has {size} bytes or more; at most {limit} are accepted"
        )
