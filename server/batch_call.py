"""Answers one line of a batch by the very route that its endpoint names, as its maker would be."""

import asyncio
from types import SimpleNamespace
from typing import Final

from fastapi import Request
from starlette.types import Message

from .access.caller import Caller, Scope, set_caller
from .access.error import InvalidKey, MissingScope
from .access.keyring import Keyring
from .batch_runner import Call
from .batch_store import Batch
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
    """Calls routes as if a client that never goes away had sent the body with the batch's key."""
    app = SimpleNamespace(state=SimpleNamespace(service=service))

    async def call(batch: Batch, body: bytes) -> tuple[int, bytes]:
        path = batch.endpoint
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "app": app}
        try:
            set_caller(scope, _maker(service.keyring, batch))
            response = await _HANDLERS[path](Request(scope, _Sender(body)))
        except Exception as error:  # what the app's own handlers would answer
            response = error_response(error)
        return response.status_code, bytes(response.body)

    return call


def _maker(keyring: Keyring, batch: Batch) -> Caller:
    """Asked for each line: a key may be revoked, or changed in its file, while the batch runs."""
    caller = keyring.caller_of(batch.key)
    if caller.tenant != batch.tenant:
        raise InvalidKey("the API key that this was asked with has another tenant now")
    if not caller.has(Scope.INFERENCE):
        raise MissingScope(f"the API key lacks the scope {Scope.INFERENCE.value!r} now")
    return caller


class _Sender:
    """Gives the body, then waits forever."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body or b"", "more_body": False}
