"""Who may use which route: the one table. A route that is not in it does not exist for anybody."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from .caller import Scope


class Kind(Enum):
    """What a path names."""

    ADAPTER = auto()
    MODEL = auto()
    FILE = auto()
    JOB = auto()
    MERGE = auto()
    BATCH = auto()
    SAMPLING = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """``scope`` None is public. ``kind`` is what the path's ``param`` names, if anything.

    ``partial`` opens the route too, but not for all that it is for: see `Ownership` and the route.

    Whoever names a thing of another tenant is answered as if there were none. Where the route
    ``changes`` it, a shared thing is an administrator's; one that ``makes`` it needs none yet.
    """

    scope: Scope | None
    kind: Kind | None = None
    param: str = ""
    changes: bool = False
    makes: bool = False
    partial: Scope | None = None


def _on(scope: Scope, kind: Kind, param: str, *, partial: Scope | None = None) -> tuple[Rule, Rule]:
    see = Rule(scope, kind, param, partial=partial)
    return see, replace(see, changes=True)


_PUBLIC: Final = Rule(None)
_INFERENCE: Final = Rule(Scope.INFERENCE)
_ADAPTERS: Final = Rule(Scope.ADAPTERS)
_TRAINING: Final = Rule(Scope.TRAINING)
_ADMIN: Final = Rule(Scope.ADMIN)
_SEE_ADAPTER, _CHANGE_ADAPTER = _on(Scope.ADAPTERS, Kind.ADAPTER, "name")
_SEE_LEARNING, _CHANGE_LEARNING = _on(Scope.TRAINING, Kind.ADAPTER, "name")
# Files of batches need no more than what batches need.
_FILES: Final = Rule(Scope.TRAINING, partial=Scope.INFERENCE)
_SEE_FILE, _CHANGE_FILE = _on(Scope.TRAINING, Kind.FILE, "file_id", partial=Scope.INFERENCE)
_SEE_BATCH, _CHANGE_BATCH = _on(Scope.INFERENCE, Kind.BATCH, "batch_id")
_SEE_SAMPLING, _CHANGE_SAMPLING = _on(Scope.TRAINING, Kind.SAMPLING, "job_id")
_SEE_JOB, _CHANGE_JOB = _on(Scope.TRAINING, Kind.JOB, "job_id")
_JOBS: Final = "/v1/fine_tuning/jobs"

# By method and path as the route declares it.
RULES: Final[Mapping[str, Rule]] = {
    "GET /live": _PUBLIC,
    "GET /ready": _PUBLIC,
    "GET /health": _PUBLIC,
    "GET /version": _PUBLIC,
    "GET /openapi.json": _PUBLIC,
    # The page itself; it asks for a key and shows nothing without one.
    "GET /console": _PUBLIC,
    "GET /console/": _PUBLIC,
    "GET /console/{name}": _PUBLIC,
    "GET /metrics": Rule(Scope.METRICS),
    "GET /metrics/adapters": Rule(Scope.METRICS),
    "POST /v1/chat/completions": _INFERENCE,
    "POST /v1/completions": _INFERENCE,
    "POST /v1/responses": _INFERENCE,
    "POST /v1/embeddings": _INFERENCE,
    "POST /tokenize": _INFERENCE,
    "POST /detokenize": _INFERENCE,
    "GET /tokenizer_info": _INFERENCE,
    "GET /v1/models": _INFERENCE,
    "GET /v1/models/{model:path}": _INFERENCE,
    "DELETE /v1/models/{model:path}": Rule(Scope.ADAPTERS, Kind.MODEL, "model", changes=True),
    "POST /v1/adapters": _ADAPTERS,
    "GET /v1/adapters": _ADAPTERS,
    "GET /v1/adapters/{name}": _SEE_ADAPTER,
    "PUT /v1/adapters/{name}": Rule(Scope.ADAPTERS, Kind.ADAPTER, "name", changes=True, makes=True),
    "DELETE /v1/adapters/{name}": _CHANGE_ADAPTER,
    "GET /v1/adapters/{name}/versions": _SEE_ADAPTER,
    # Outlives the adapter; the route shows of it what the caller may see.
    "GET /v1/adapters/{name}/history": _ADAPTERS,
    "GET /v1/adapters/{name}/download": _SEE_ADAPTER,
    "POST /v1/adapters/{name}/rollback": _CHANGE_ADAPTER,
    "POST /v1/adapters/{name}/canary": _CHANGE_ADAPTER,
    "POST /v1/adapters/{name}/promote": _CHANGE_ADAPTER,
    "POST /v1/adapters/{name}/pin": _CHANGE_ADAPTER,
    "POST /v1/adapters/{name}/unpin": _CHANGE_ADAPTER,
    "POST /v1/adapters/{name}/warm": _CHANGE_ADAPTER,
    # These read the server's own disk, or fetch with its own token.
    "POST /v1/adapters/{name}/import": _ADMIN,
    "POST /v1/load_lora_adapter": _ADMIN,
    "POST /v1/unload_lora_adapter": _ADMIN,
    "POST /load_lora_adapter": _ADMIN,
    "POST /unload_lora_adapter": _ADMIN,
    "POST /v1/adapters/merge": _ADAPTERS,
    "GET /v1/adapters/merge/{job_id}": Rule(Scope.ADAPTERS, Kind.MERGE, "job_id"),
    "POST /v1/adapters/merge/{job_id}/cancel": Rule(
        Scope.ADAPTERS, Kind.MERGE, "job_id", changes=True
    ),
    # Whoever got an answer knows its id.
    "POST /v1/feedback": _INFERENCE,
    # The routes show and erase a tenant's own.
    "GET /v1/feedback": _TRAINING,
    "GET /v1/feedback/export": _TRAINING,
    "DELETE /v1/feedback": _TRAINING,
    "DELETE /v1/feedback/{feedback_id}": _TRAINING,
    # Reads and makes training files.
    "POST /v1/datasets/sample": _TRAINING,
    "GET /v1/datasets/sample/{job_id}": _SEE_SAMPLING,
    "POST /v1/datasets/sample/{job_id}/cancel": _CHANGE_SAMPLING,
    "POST /v1/batches": _INFERENCE,
    "GET /v1/batches": _INFERENCE,
    "GET /v1/batches/{batch_id}": _SEE_BATCH,
    "POST /v1/batches/{batch_id}/cancel": _CHANGE_BATCH,
    "POST /v1/files": _FILES,
    "GET /v1/files": _FILES,
    "GET /v1/files/{file_id}": _SEE_FILE,
    "DELETE /v1/files/{file_id}": _CHANGE_FILE,
    "GET /v1/files/{file_id}/content": _SEE_FILE,
    f"POST {_JOBS}": _TRAINING,
    f"GET {_JOBS}": _TRAINING,
    f"GET {_JOBS}/{{job_id}}": _SEE_JOB,
    f"DELETE {_JOBS}/{{job_id}}": _CHANGE_JOB,
    f"POST {_JOBS}/{{job_id}}/cancel": _CHANGE_JOB,
    f"POST {_JOBS}/{{job_id}}/pause": _CHANGE_JOB,
    f"POST {_JOBS}/{{job_id}}/resume": _CHANGE_JOB,
    f"GET {_JOBS}/{{job_id}}/events": _SEE_JOB,
    f"GET {_JOBS}/{{job_id}}/checkpoints": _SEE_JOB,
    f"GET {_JOBS}/{{job_id}}/plot.png": _SEE_JOB,
    "GET /v1/adapters/{name}/learning": _SEE_LEARNING,
    "GET /v1/adapters/{name}/learning/runs": _SEE_LEARNING,
    "PUT /v1/adapters/{name}/learning": _CHANGE_LEARNING,
    "POST /v1/adapters/{name}/learn": _CHANGE_LEARNING,
    "POST /v1/keys": _ADMIN,
    "GET /v1/keys": _ADMIN,
    "DELETE /v1/keys/{key_id}": _ADMIN,
}
# Routers that read /metrics have no key to show.
OPEN_METRICS_RULES: Final[Mapping[str, Rule]] = {**RULES, "GET /metrics": _PUBLIC}
