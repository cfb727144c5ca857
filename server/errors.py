"""The one place where errors become HTTP: OpenAI's envelope with string codes."""

from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.engine.errors import (
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    RequestFailed,
    RequestRejected,
)

INTERNAL_ERROR: Final = "internal_error"
_MAX_MESSAGE_CHARS: Final = 1000
# Codes of RequestFailed that a retry can cure: the engine, not the request, went wrong.
_TRANSIENT_CODES: Final = frozenset({"engine_unavailable", "engine_died", "adapter_unavailable"})


class ModelNotFound(RequestRejected):
    """The ``model`` is neither the base nor an adapter."""

    code = "model_not_found"


class RequestTooLarge(RequestRejected):
    """A body above the limit."""

    code = "request_too_large"


class HeaderTooLarge(RequestRejected):
    """Headers above the limit."""

    code = "header_too_large"


class UnsupportedParameter(RequestRejected):
    """A field of OpenAI's API that cannot be honoured."""

    code = "unsupported_parameter"


class UnknownParameter(RequestRejected):
    """A field that nobody knows."""

    code = "unknown_parameter"


class StorageFull(EngineUnavailable):
    """There is no room on the disk."""

    code = "disk_full"


class NameTaken(RegistryError):
    """An adapter of this name exists."""

    code = "name_exists"


class Draining(EngineUnavailable):
    """The server is shutting down and takes no new requests."""

    code = "draining"


class ClientDisconnectedError(Exception):
    """The client closed the connection; nobody reads the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """One error as HTTP sees it."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message[:_MAX_MESSAGE_CHARS],
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"retry-after": str(self.retry_after_seconds)}


_REJECTED_STATUS: Final[dict[type[RequestRejected], int]] = {
    ModelNotFound: 404,
    RequestTooLarge: 413,
    HeaderTooLarge: 431,
}


def http_error(error: Exception) -> HttpError:
    """Map an error of the tree, or anything unexpected, to HTTP."""
    match error:
        case RequestRejected():
            return HttpError(
                status=_REJECTED_STATUS.get(type(error), 400),
                type="invalid_request_error",
                code=error.code,
                message=str(error),
                param=error.param,
            )
        case AdapterRejected():
            return HttpError(
                status=400, type="invalid_request_error", code=error.code, message=str(error)
            )
        case EngineOverloaded():
            return _retryable(429, "rate_limit_error", error.code, str(error), seconds=1)
        case EngineUnavailable():
            return _retryable(503, "server_error", error.code, str(error), seconds=2)
        case RequestFailed() if error.code in _TRANSIENT_CODES:
            return _retryable(503, "server_error", error.code, str(error), seconds=2)
        case EngineError():
            return HttpError(status=500, type="server_error", code=error.code, message=str(error))
        case HTTPException():
            return _protocol_error(error)
        case _:
            return HttpError(
                status=500,
                type="server_error",
                code=INTERNAL_ERROR,
                message="an internal error; the server's log has the details",
            )


def error_response(error: Exception) -> Response:
    mapped = http_error(error)
    headers = mapped.headers()
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return Response(
        orjson.dumps(mapped.body()),
        status_code=mapped.status,
        headers=headers,
        media_type="application/json",
    )


def add_error_handlers(app: FastAPI) -> None:
    for kind in (EngineError, AdapterRejected, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    for kind in (ClientDisconnectedError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_nobody)


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _retryable(status: int, kind: str, code: str, message: str, *, seconds: int) -> HttpError:
    return HttpError(
        status=status, type=kind, code=code, message=message, retry_after_seconds=seconds
    )


def _protocol_error(error: HTTPException) -> HttpError:
    codes = {404: "not_found", 405: "method_not_allowed"}
    messages = {
        404: "no such route; GET /openapi.json lists all of them",
        405: "this route does not know that method",
    }
    return HttpError(
        status=error.status_code,
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        code=codes.get(error.status_code, "http_error"),
        message=messages.get(error.status_code, str(error.detail)),
    )
