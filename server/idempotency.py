"""``Idempotency-Key``: a repeated request is answered as it was the first time, for a day."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from fastapi import Request, Response

from multiflora.adapters.kept_answer import KeptAnswer
from multiflora.engine.errors import RequestRejected

from .access.caller import caller_of
from .errors import KeyInUse, OutcomeUnknown
from .service import Service

_MAX_KEY_CHARS: Final = 255


async def once(
    request: Request,
    service: Service,
    work: Callable[[bool], Awaitable[Response]],
    *,
    fingerprint: str,
    can_repeat: bool = True,
) -> Response:
    """Answer with ``work``, or as before if the key came before with the same ``fingerprint``.

    ``work`` is told whether an earlier try may have taken effect before the server died; with
    ``can_repeat`` False the client is told instead. Only successes are kept: an error has changed
    nothing. Raises ``KeyReused``, ``KeyInUse``, ``OutcomeUnknown`` and what ``work`` raises.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return await work(False)
    if not 0 < len(key) <= _MAX_KEY_CHARS:
        raise RequestRejected(f"an Idempotency-Key has 1 to {_MAX_KEY_CHARS} characters")
    if tenant := caller_of(request).tenant:
        # No name of a tenant has this character.
        key = f"{tenant}\n{key}"
    if key in service.keys_in_use:
        raise KeyInUse("a request with this Idempotency-Key is running; wait for its answer")
    service.keys_in_use.add(key)
    try:
        return await _once(service, key, work, _total(request, fingerprint), can_repeat)
    finally:
        service.keys_in_use.discard(key)


async def _once(
    service: Service,
    key: str,
    work: Callable[[bool], Awaitable[Response]],
    fingerprint: str,
    can_repeat: bool,
) -> Response:
    answers = service.registry.answers
    kept = await asyncio.to_thread(answers.begin, key, fingerprint)
    if kept is not None and kept.status is not None:
        return adapter_response(kept.body, kept.status, is_replay=True)
    if kept is not None and not can_repeat:
        raise OutcomeUnknown(
            "the server ended while it ran this request; read the adapter to see whether it took "
            "effect, then use a new Idempotency-Key"
        )
    try:
        response = await work(kept is not None)
    except Exception:
        await asyncio.to_thread(answers.forget, key)
        raise
    answer = KeptAnswer(response.status_code, bytes(response.body))
    await asyncio.to_thread(answers.finish, key, answer)
    return response


def adapter_response(body: bytes, status: int = 200, *, is_replay: bool = False) -> Response:
    """An adapter, or a part of one, as JSON; its version is the entity tag."""
    headers = {"idempotent-replayed": "true"} if is_replay else {}
    version = orjson.loads(body).get("version")
    if version:
        headers["etag"] = f'"{version}"'
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _total(request: Request, fingerprint: str) -> str:
    asked = (request.method, request.url.path, request.url.query, fingerprint)
    matched = request.headers.get("if-match", "")
    return hashlib.sha256("\n".join((*asked, matched)).encode()).hexdigest()
