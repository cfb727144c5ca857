"""The outermost layer: request ids, and the last resort for what nobody expected."""

import logging
import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multiflora.engine.log_line import HARMLESS_ID
from multiflora.engine.log_line import request_id as current_id

from .errors import error_response

logger = logging.getLogger(__name__)

_HARMLESS: Final = re.compile(HARMLESS_ID)

# No answer is a page: nothing may be guessed of it, framed, run, sent on or kept.
_SECURITY_HEADERS: Final = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)


class EdgeMiddleware:
    """Puts an ``x-request-id`` on every answer: the client's own where it is harmless.

    Also headers that keep browsers from making more of an answer than it is; no origin is allowed.

    An exception that no handler knows is logged once with that id and answered with a 500;
    Starlette's own last resort sits outside all middleware and would lose the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        current_id.set(_request_id(Headers(scope=scope)))
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                # The body may have named the request meanwhile.
                headers["x-request-id"] = current_id.get()
                for name, value in _SECURITY_HEADERS:
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("request %s failed", current_id.get())
            if not is_started:
                await error_response(error)(scope, receive, send_with_id)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex
