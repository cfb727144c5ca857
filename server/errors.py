"""The one place where errors become HTTP: OpenAI's envelope with string codes."""

import errno
import math
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from multiflora.adapters.error import (
    AdapterRejected,
    ForeignName,
    InvalidCanary,
    InvalidName,
    PreconditionFailed,
    RegistryError,
    UnknownName,
    UnknownVersion,
    VersionInUse,
)
from multiflora.adapters.kept_answer import KeyReused
from multiflora.engine.errors import (
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    RequestFailed,
    RequestRejected,
)
from multiflora.engine.training.data.file_registry import FileInUse, UnknownFile
from multiflora.engine.training.feedback.error import CompletionNotFound, FeedbackNotFound
from multiflora.engine.training.jobs.error import JobNotFound, JobOver, JobRuns
from multiflora.engine.training.learning.error import LearningOff, LearningRuns, RunNotFound

from .access.error import AccessDenied, InvalidKey
from .batch_store import BatchOver, UnknownBatch
from .refusal import DeadlineExceeded, Refused

INTERNAL_ERROR: Final = "internal_error"
_MAX_MESSAGE_CHARS: Final = 1000
# Codes of RequestFailed that only the request's own settings can cause, though they show late.
_REQUEST_CODES: Final = frozenset({"no_token_left", "invalid_grammar"})
# Codes of RequestFailed that a retry can cure: the engine, not the request, went wrong.
_TRANSIENT_CODES: Final = frozenset({"engine_unavailable", "engine_died", "adapter_unavailable"})


class ModelNotFound(RequestRejected):
    """The ``model`` is neither the base nor an adapter."""

    code = "model_not_found"


class UnknownJob(RequestRejected):
    """No job has this id."""

    code = "unknown_job"


class RequestTooLarge(RequestRejected):
    """A body above the limit."""

    code = "request_too_large"


class HeaderTooLarge(RequestRejected):
    """Headers above the limit."""

    code = "request_too_large"


class UnsupportedParameter(RequestRejected):
    """A field of OpenAI's API that cannot be honoured."""

    code = "unsupported_parameter"


class UnknownParameter(RequestRejected):
    """A field that nobody knows."""

    code = "unknown_parameter"


class WrongBase(RequestRejected):
    """A version that was made for another base."""

    code = "wrong_base"


class UploadTimeout(RequestRejected):
    """A client that stopped sending."""

    code = "upload_timeout"


class SourceNotAllowed(RequestRejected):
    """A repository or path that the operator has not allowed."""

    code = "source_not_allowed"


class HubNotFound(RequestRejected):
    """A repository, or a revision of it, that this server's token cannot see."""

    code = "hub_not_found"


class HubUnavailable(EngineUnavailable):
    """The hub does not answer, or this machine is offline."""

    code = "hub_unavailable"


class StorageFull(EngineUnavailable):
    """There is no room on the disk."""

    code = "disk_full"


def is_disk_full(error: OSError) -> bool:
    """Whether there was no room, on the disk or in a quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class NameTaken(RegistryError):
    """An adapter of this name exists."""

    code = "adapter_conflict"


class UnknownKey(RegistryError):
    """No API key has this id."""

    code = "unknown_key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key has the id {key_id[:64]!r}")


class KeyInUse(RegistryError):
    """A request with the same idempotency key is running."""

    code = "idempotency_key_in_use"


class OutcomeUnknown(RegistryError):
    """The server died while it ran the first request with this idempotency key."""

    code = "outcome_unknown"


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
    retry_after_seconds: float | None = None
    should_retry: bool | None = None

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
        headers: dict[str, str] = {}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after_seconds))
            headers["retry-after-ms"] = str(math.ceil(1000 * self.retry_after_seconds))
        # The rest of a body that was given up would be read as the next request.
        if self.code == Draining.code or self.status in _CLOSING_STATUSES:
            headers["connection"] = "close"
        if self.status == InvalidKey.status:
            headers["www-authenticate"] = "Bearer"
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


_REJECTED_STATUS: Final[dict[type[RequestRejected], int]] = {
    ModelNotFound: 404,
    UnknownJob: 404,
    RequestTooLarge: 413,
    HeaderTooLarge: 431,
    UploadTimeout: 408,
    SourceNotAllowed: 403,
    HubNotFound: 404,
}
_CLOSING_STATUSES: Final = frozenset({408, 413, 431})
_REGISTRY_STATUS: Final[dict[type[RegistryError], int]] = {
    InvalidName: 400,
    InvalidCanary: 400,
    UnknownName: 404,
    UnknownVersion: 404,
    UnknownFile: 404,
    FileInUse: 409,
    UnknownBatch: 404,
    BatchOver: 409,
    JobNotFound: 404,
    JobOver: 409,
    JobRuns: 409,
    CompletionNotFound: 404,
    FeedbackNotFound: 404,
    RunNotFound: 404,
    LearningOff: 409,
    LearningRuns: 409,
    NameTaken: 409,
    VersionInUse: 409,
    KeyReused: 409,
    KeyInUse: 409,
    OutcomeUnknown: 409,
    ForeignName: 409,
    UnknownKey: 404,
    PreconditionFailed: 412,
}
_REGISTRY_PARAMS: Final[dict[type[RegistryError], str]] = {
    InvalidName: "name",
    InvalidCanary: "weight",
    UnknownName: "name",
    UnknownVersion: "version",
    UnknownFile: "file_id",
    UnknownKey: "key_id",
    FileInUse: "file_id",
    UnknownBatch: "batch_id",
    BatchOver: "batch_id",
    JobNotFound: "fine_tuning_job_id",
    JobOver: "fine_tuning_job_id",
    JobRuns: "fine_tuning_job_id",
    CompletionNotFound: "completion_id",
    FeedbackNotFound: "feedback_id",
    RunNotFound: "run_id",
    LearningOff: "name",
    LearningRuns: "name",
    NameTaken: "name",
    ForeignName: "name",
    VersionInUse: "version",
    PreconditionFailed: "if-match",
    KeyReused: "idempotency-key",
    KeyInUse: "idempotency-key",
    OutcomeUnknown: "idempotency-key",
}
# Refusals of the gate that are about size alone.
_TOO_LARGE_CODES: Final = frozenset({"adapter_too_large", "archive_too_large"})


def http_error(error: Exception) -> HttpError:
    """Map an error of the tree, or anything unexpected, to HTTP."""
    match error:
        case RequestRejected():
            return HttpError(
                status=_rejected_status(error),
                type="invalid_request_error",
                code=error.code,
                message=str(error),
                param=error.param,
            )
        case AdapterRejected():
            return HttpError(
                status=413 if error.code in _TOO_LARGE_CODES else 400,
                type="invalid_request_error",
                code=error.code,
                message=str(error),
            )
        case AccessDenied():
            return HttpError(
                status=error.status, type=error.type, code=error.code, message=str(error)
            )
        case RegistryError():
            return _registry_error(error)
        case Refused():
            seconds = error.retry_after_seconds
            return _retryable(429, "rate_limit_error", error.code, str(error), seconds=seconds)
        case DeadlineExceeded():
            return HttpError(status=504, type="server_error", code=error.code, message=str(error))
        case EngineOverloaded():
            return _retryable(429, "rate_limit_error", error.code, str(error), seconds=1)
        case EngineUnavailable():
            return _retryable(503, "server_error", error.code, str(error), seconds=2)
        case RequestFailed() if error.code in _TRANSIENT_CODES:
            return _retryable(503, "server_error", error.code, str(error), seconds=2)
        case RequestFailed() if error.code in _REQUEST_CODES:
            return HttpError(
                status=400, type="invalid_request_error", code=error.code, message=str(error)
            )
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
    for kind in (EngineError, AdapterRejected, RegistryError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_query)
    for kind in (ClientDisconnectedError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_nobody)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        request.app.state.service.metrics.refusal(error.code)
    return error_response(error)


async def _answer_bad_query(request: Request, error: Exception) -> Response:
    """What FastAPI itself checks: parameters of the path and the query."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])[:200]
    return error_response(RequestRejected(f"{param}: {first['msg']}"[:500], param=param))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _rejected_status(error: RequestRejected) -> int:
    return next((s for kind, s in _REJECTED_STATUS.items() if isinstance(error, kind)), 400)


def _registry_error(error: RegistryError) -> HttpError:
    status = _REGISTRY_STATUS.get(type(error))
    if status is None:
        return _retryable(503, "server_error", error.code, str(error), seconds=5)
    return HttpError(
        status=status,
        type="invalid_request_error",
        code=error.code,
        message=str(error),
        param=_REGISTRY_PARAMS.get(type(error)),
        # Clients of OpenAI's API repeat a 409 by themselves unless they are told not to.
        should_retry=isinstance(error, KeyInUse) if status == 409 else None,
    )


def _retryable(status: int, kind: str, code: str, message: str, *, seconds: float) -> HttpError:
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
