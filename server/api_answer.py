"""What each route answers with when all is well, for the OpenAPI document: the one table.

A route that is not in it answers 200 with a JSON object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from .schemas import answer as inference
from .schemas import stored_answer as stored
from .schemas.answer import Deleted, DoorAnswer, Page

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``kinds`` are the objects, one of which it is; none is bytes of the media types.

    ``headers`` are those of requests that the route heeds.
    """

    kinds: tuple[type[BaseModel], ...] = ()
    statuses: tuple[int, ...] = (200,)
    media_types: tuple[str, ...] = (JSON,)
    headers: tuple[str, ...] = ()
    # In place of the usual error.
    refusals: tuple[type[BaseModel], ...] = ()


_MATCH: Final = ("if-match",)
_ONCE: Final = ("idempotency-key",)
_PATIENCE: Final = ("x-request-timeout-ms",)
_JOBS: Final = "/v1/fine_tuning/jobs"


def _of(*kinds: type[BaseModel], headers: tuple[str, ...] = ()) -> Answer:
    return Answer(kinds=kinds, headers=headers)


def _page(kind: type[Any]) -> Answer:
    return Answer(kinds=(Page[kind],))


def _streamed(kind: type[BaseModel]) -> Answer:
    return Answer(kinds=(kind,), media_types=(JSON, EVENTS), headers=_PATIENCE)


def _published(*statuses: int, headers: tuple[str, ...] = _MATCH + _ONCE) -> Answer:
    return Answer(kinds=(stored.Adapter,), statuses=statuses, headers=headers)


def _bytes(media_type: str) -> Answer:
    return Answer(media_types=(media_type,))


_ADAPTER: Final = _of(stored.Adapter, headers=_MATCH + _ONCE)
_JOB: Final = _of(stored.FineTuningJob)
_WORK: Final = _of(stored.BackgroundWork)
_DOOR: Final = Answer(kinds=(DoorAnswer,), refusals=(DoorAnswer,))

# By method and path as the route declares it, like the rules of access.
ANSWERS: Final[Mapping[str, Answer]] = {
    "POST /v1/chat/completions": _streamed(inference.ChatCompletion),
    "POST /v1/completions": _streamed(inference.Completion),
    "POST /v1/responses": _streamed(inference.ResponseObject),
    "POST /v1/embeddings": _of(inference.Embeddings, headers=_PATIENCE),
    "POST /tokenize": _of(inference.Tokens),
    "POST /detokenize": _of(inference.Text),
    "GET /tokenizer_info": _of(inference.TokenizerInfo),
    "GET /v1/models": _of(inference.Models),
    "GET /v1/models/{model}": _of(inference.Model),
    "DELETE /v1/models/{model}": _of(Deleted),
    "POST /v1/adapters": _published(201, headers=_ONCE),
    "GET /v1/adapters": _page(stored.Adapter),
    "GET /v1/adapters/{name}": _of(stored.Adapter),
    "PUT /v1/adapters/{name}": _published(200, 201),
    "DELETE /v1/adapters/{name}": _of(Deleted, headers=_MATCH),
    "GET /v1/adapters/{name}/versions": _page(stored.AdapterVersion),
    "GET /v1/adapters/{name}/history": _page(stored.AdapterEvent),
    "GET /v1/adapters/{name}/download": _bytes("application/x-tar"),
    "POST /v1/adapters/{name}/rollback": _ADAPTER,
    "POST /v1/adapters/{name}/canary": _of(stored.Adapter, headers=_ONCE),
    "POST /v1/adapters/{name}/promote": _ADAPTER,
    "POST /v1/adapters/{name}/pin": _of(stored.Adapter, headers=_ONCE),
    "POST /v1/adapters/{name}/unpin": _of(stored.Adapter, headers=_ONCE),
    "POST /v1/adapters/{name}/warm": _of(stored.Adapter),
    "POST /v1/adapters/{name}/import": _published(200, 201),
    "POST /v1/adapters/merge": Answer(
        kinds=(stored.Adapter, stored.BackgroundWork),
        statuses=(200, 201, 202),
        headers=_MATCH + _ONCE,
    ),
    "GET /v1/adapters/merge/{job_id}": _WORK,
    "POST /v1/adapters/merge/{job_id}/cancel": _WORK,
    "GET /v1/adapters/{name}/learning": _of(stored.Learning),
    "PUT /v1/adapters/{name}/learning": _of(stored.Learning),
    "GET /v1/adapters/{name}/learning/runs": _page(stored.LearningRun),
    "POST /v1/adapters/{name}/learn": _of(stored.FineTuningJob, headers=_ONCE),
    "POST /v1/load_lora_adapter": _bytes("text/plain"),
    "POST /v1/unload_lora_adapter": _bytes("text/plain"),
    "POST /load_lora_adapter": _DOOR,
    "POST /unload_lora_adapter": _DOOR,
    "POST /v1/feedback": _of(stored.Feedback),
    "GET /v1/feedback": _page(stored.Feedback),
    "GET /v1/feedback/export": _bytes("application/jsonl"),
    "DELETE /v1/feedback": _of(stored.Erasure),
    "DELETE /v1/feedback/{feedback_id}": _of(Deleted),
    "POST /v1/datasets/sample": Answer(
        kinds=(stored.SampleReport, stored.BackgroundWork), statuses=(200, 202)
    ),
    "GET /v1/datasets/sample/{job_id}": _WORK,
    "POST /v1/datasets/sample/{job_id}/cancel": _WORK,
    "POST /v1/batches": _of(stored.Batch),
    "GET /v1/batches": _page(stored.Batch),
    "GET /v1/batches/{batch_id}": _of(stored.Batch),
    "POST /v1/batches/{batch_id}/cancel": _of(stored.Batch),
    "POST /v1/files": _of(stored.File, headers=_ONCE),
    "GET /v1/files": _page(stored.File),
    "GET /v1/files/{file_id}": _of(stored.File),
    "DELETE /v1/files/{file_id}": _of(Deleted),
    "GET /v1/files/{file_id}/content": _bytes("application/octet-stream"),
    f"POST {_JOBS}": _of(stored.FineTuningJob, headers=_ONCE),
    f"GET {_JOBS}": _page(stored.FineTuningJob),
    f"GET {_JOBS}/{{job_id}}": _JOB,
    f"DELETE {_JOBS}/{{job_id}}": _of(Deleted),
    f"POST {_JOBS}/{{job_id}}/cancel": _JOB,
    f"POST {_JOBS}/{{job_id}}/pause": _JOB,
    f"POST {_JOBS}/{{job_id}}/resume": _JOB,
    f"GET {_JOBS}/{{job_id}}/events": _page(stored.JobEvent),
    f"GET {_JOBS}/{{job_id}}/checkpoints": _page(stored.JobCheckpoint),
    f"GET {_JOBS}/{{job_id}}/plot.png": _bytes("image/png"),
    "POST /v1/keys": Answer(kinds=(stored.Key,), statuses=(201,)),
    "GET /v1/keys": _page(stored.Key),
    "DELETE /v1/keys/{key_id}": _of(stored.Key),
    "GET /live": _of(inference.Status),
    "GET /ready": _of(inference.Status),
    "GET /health": _of(inference.Status),
    "GET /version": _of(inference.Version),
    "GET /metrics": _bytes("text/plain"),
    "GET /metrics/adapters": _bytes("text/plain"),
}
