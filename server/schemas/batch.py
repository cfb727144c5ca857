"""``/v1/batches``: the body of a new batch, and the batch object."""

import json
from typing import Any, Literal

from pydantic import Field

from ..batch_store import Batch
from .body import RequestBody

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class BatchBody(RequestBody):
    """A file of requests to one endpoint."""

    input_file_id: str = Field(max_length=100)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: dict[str, str] = Field({}, max_length=16)


def batch_object(batch: Batch, *, answered: int, failed: int) -> dict[str, Any]:
    errors = None if batch.errors is None else json.loads(batch.errors)
    ended = {f"{batch.status}_at": batch.finished} if batch.finished else {}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors and {"object": "list", "data": errors},
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created,
        "in_progress_at": batch.started,
        "expires_at": batch.expires,
        **ended,
        "request_counts": {
            "total": batch.total,
            "completed": answered - failed,
            "failed": failed,
        },
        "metadata": json.loads(batch.metadata),
    }
