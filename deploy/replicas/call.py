"""A request on its way to a replica, and what comes back: first a head, then pieces of the body."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request

# Of one hop, or made anew by the next.
_HOP_HEADERS: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade host content-length accept-encoding date server".split()
)
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``adapters`` are those that the replica must have before its server is asked."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        return any(
            name == "content-type" and value.startswith("text/event-stream")
            for name, value in self.headers
        )


class ServerLost(Exception):
    """The replica's server went away while it answered."""


async def call_of(request: Request, path: str, *, known: Collection[str] = ()) -> Call:
    """``path`` is that of the replica's server; ``known`` are the adapters that there are."""
    body = await request.body()
    return Call(
        method=request.method,
        path=path,
        headers=onward(tuple(request.headers.items())),
        body=body,
        adapters=adapters_in(body, known) if known else (),
    )


def error_body(message: str, *, code: str) -> bytes:
    """In the envelope that servers use."""
    fields = {"message": message, "type": "server_error", "param": None, "code": code}
    return orjson.dumps({"error": fields})


def onward(headers: Headers) -> Headers:
    """What of ``headers`` is for the one after the next."""
    return tuple((name, value) for name, value in headers if name not in _HOP_HEADERS)


def adapters_in(body: bytes, known: Collection[str]) -> tuple[str, ...]:
    """The ``known`` adapters that an inference body names, the one that decides first.

    A body that is no object names none: the server says what is wrong with it.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    if not isinstance(fields, dict):
        return ()
    named: list[Any] = [fields.get(key) for key in ("adapter_id", "lora_path", "model")]
    if isinstance(shares := fields.get("adapters"), list):
        named += [share.get("name") for share in shares if isinstance(share, dict)]
    found = [_known(name, known) for name in named if isinstance(name, str)]
    return tuple(dict.fromkeys(name for name in found if name))


def _known(name: str, known: Collection[str]) -> str | None:
    """Servers also take ``base:adapter``."""
    if name in known:
        return name
    behind = name.partition(":")[2]
    return behind if behind in known else None
