"""What a request leaves behind for those who operate the server: a trace, a line in the log."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from fastapi import Request

from .catalog import ServedModel
from .metric.request_record import RequestRecord
from .service import Service

logger = logging.getLogger(__name__)

# OpenTelemetry's words for what the answers' objects are called.
_OPERATIONS: Final = {"chat.completion": "chat", "response": "chat", "list": "embeddings"}


def leave_trail(
    service: Service,
    request: Request,
    record: RequestRecord,
    model: ServedModel,
    *,
    kind: str,
    answer_id: str,
) -> None:
    """Have ``record`` tell its end, where that is wanted; ``kind`` is the answer's object."""
    attributes = {
        "gen_ai.operation.name": _OPERATIONS.get(kind, kind),
        "gen_ai.request.model": model.name,
        "gen_ai.response.id": answer_id,
        "multiflora.adapters": ",".join(parent.name for parent in model.parents),
        "multiflora.versions": ",".join(digest[:12] for digest in model.digests),
    }
    service.tracing.follow(record, request.headers, attributes)
    if service.logs_requests:
        record.on_end.append(partial(_log, attributes))


def _log(attributes: Mapping[str, str], record: RequestRecord) -> None:
    """Names, counts and times; nothing of what was asked or answered."""
    first = record.first_token_at
    fields = {
        "id": attributes["gen_ai.response.id"],
        "operation": attributes["gen_ai.operation.name"],
        "model": attributes["gen_ai.request.model"],
        "versions": attributes["multiflora.versions"],
        "outcome": record.outcome,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "generated_tokens": record.num_generated_tokens,
        "seconds": round(time.perf_counter() - record.started, 6),
        "first_token_seconds": None if first is None else round(first - record.started, 6),
    }
    logger.info("request ended", extra={"fields": fields})
