"""Answers one line of a batch by the very route that its endpoint names."""

import asyncio
from types import SimpleNamespace
from typing import Final

from fastapi import Request
from starlette.types import Message

from .access.caller import ANYBODY, set_caller
from .batch_runner import Call
from .errors import error_response
from .routes.chat import create_chat_completion
from .routes.completions import create_completion
from .routes.embeddings import create_embeddings
from .routes.responses import create_response
from .service import Service

_HANDLERS: Final = {
    "/v1/chat/completions": create_chat_completion,
    "/v1/completions": create_completion,
    "/v1/embeddings": create_embeddings,
    "/v1/responses": create_response,
}


def caller(service: Service) -> Call:
    """Calls routes as if a client that never goes away had sent the body."""
    app = SimpleNamespace(state=SimpleNamespace(service=service))

    async def call(endpoint: str, body: bytes) -> tuple[int, bytes]:
        scope = {"type": "http", "method": "POST", "path": endpoint, "headers": [], "app": app}
        # Only administrators make batches.
        set_caller(scope, ANYBODY)
        try:
            response = await _HANDLERS[endpoint](Request(scope, _Sender(body)))
        except Exception as error:  # what the app's own handlers would answer
            response = error_response(error)
        return response.status_code, bytes(response.body)

    return call


class _Sender:
    """Gives the body, then waits forever."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body or b"", "more_body": False}
