"""The way of every inference request: resolve, tokenize, check, generate, write."""

import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import orjson
from fastapi import Request, Response

import multiflora
from multiflora.engine.request import EngineInfo

from .access.caller import Caller, caller_of
from .admission import Order
from .answer_shape import AnswerShape
from .catalog import Parent, ServedModel
from .deadline import Deadline, timeout_of
from .disconnect import until_disconnect
from .generation import Delta, SequenceJob, generate, joined
from .ignored_field import check_body, ignored_header
from .metrics import RequestRecord
from .observation import check_store, observed
from .question import EventWriter, Question
from .request_trail import leave_trail
from .selection import lease_selected
from .sequencing import sequence_jobs
from .service import Service
from .streaming import ChunkWriter, EventStream
from .usage import UsageCount


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """An answer in the making."""

    envelope: dict[str, Any]
    opening: dict[str, Any]
    headers: dict[str, str]
    usage: UsageCount
    record: RequestRecord


async def answer(request: Request, service: Service, question: Question) -> Response:
    """Answer a question; whatever it holds is let go exactly once, however it ends."""
    body, caller = question.body, caller_of(request)
    check_body(question.given or body, is_strict=service.limits.refuses_unknown_fields)
    async with AsyncExitStack() as resources:
        resources.enter_context(service.drain.running())
        service.admission.check_room()
        seconds = timeout_of(request.headers, default=service.request_timeout_seconds)
        deadline = Deadline.after(seconds)
        model = resources.enter_context(lease_selected(service.catalog, body, view=caller.view))
        record = resources.enter_context(
            service.metrics.request(model.name, is_canary=model.is_canary)
        )
        check_store(service.learner, model, body.store)
        info = service.client.info
        async with deadline.held():
            prompts = await _prompts(service, question, model, info.max_model_len)
            grammar = await _grammar(service, question)
        answer_id = f"{question.shape.id_prefix}-{uuid.uuid4().hex}"
        leave_trail(service, request, record, model, kind=question.shape.kind, answer_id=answer_id)
        jobs = sequence_jobs(
            service,
            question,
            prompts,
            info=info,
            model=model,
            answer_id=answer_id,
            grammar=grammar,
        )
        jobs = [_for_tenant(job, caller.tenant) for job in jobs]
        order = _order(caller, model, jobs, deadline.remaining_seconds)
        ticket = resources.enter_context(service.admission.admitted(order))
        record.on_first_token = ticket.begin
        record.ask([len(prompt) for prompt in prompts], num_choices=body.n)
        deltas = record.watch(generate(service.client, service.tokenizer, jobs))
        deltas = deadline.until(deltas)
        deltas = observed(*(deltas, service.learner, model, body, answer_id), tenant=caller.tenant)
        resources.push_async_callback(deltas.aclose)
        making = _Answer(
            envelope=_envelope(answer_id, model, info),
            opening=question.shape.fields(prompts),
            headers={**version_headers(model), **ignored_header(question.given or body)},
            usage=UsageCount([len(prompt) for prompt in prompts], num_choices=body.n),
            record=record,
        )
        ticket.num_answered = lambda: making.usage.num_generated
        if not body.stream:
            return await until_disconnect(request, _whole(making, question.shape, deltas))
        # The first delta comes before the status line, so that a refusal has its own status.
        first = await until_disconnect(request, anext(deltas))
        events = _writer(making, question).events(first, deltas)
        return EventStream(events, resources=resources.pop_all(), headers=making.headers)


async def _prompts(
    service: Service, question: Question, model: ServedModel, max_model_len: int
) -> Sequence[Sequence[int]]:
    tokenize = question.tokenize
    if question.is_chat:
        tokenize = partial(tokenize, renderer=service.renderer(model))
    return await tokenize(max_model_len=max_model_len)


async def _grammar(service: Service, question: Question) -> str:
    structure = question.structure or question.body.structure()
    if structure is None:
        return ""
    return await service.grammar_check.make(structure.build, param=structure.param)


def _for_tenant(job: SequenceJob, tenant: str) -> SequenceJob:
    return replace(job, request=replace(job.request, tenant=tenant)) if tenant else job


def _order(
    caller: Caller, model: ServedModel, jobs: Sequence[SequenceJob], timeout_seconds: float | None
) -> Order:
    num_prompt_tokens = sum(len(job.request.prompt) for job in jobs)
    return Order(
        caller=caller,
        adapter=model.name if model.parents else None,
        num_sequences=len(jobs),
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_prompt_tokens + sum(job.request.sampling.max_tokens for job in jobs),
        timeout_seconds=timeout_seconds,
    )


async def _whole(making: _Answer, shape: AnswerShape, deltas: AsyncGenerator[Delta]) -> Response:
    parts: dict[int, list[Delta]] = {}
    async for delta in deltas:
        making.usage.add(delta)
        parts.setdefault(delta.index, []).append(delta)
    choices = [shape.choice(joined(parts[index])) for index in sorted(parts)]
    making.record.succeed()
    envelope = {**making.envelope, **making.opening, "object": shape.kind}
    content = shape.document(envelope, choices, making.usage.as_json())
    return Response(orjson.dumps(content), headers=making.headers, media_type="application/json")


def _writer(making: _Answer, question: Question) -> EventWriter:
    if question.make_writer:
        return question.make_writer(
            envelope=making.envelope, usage=making.usage, record=making.record
        )
    return ChunkWriter(
        envelope={**making.envelope, "object": question.shape.chunk_kind},
        opening=making.opening,
        shape=question.shape,
        options=question.body.stream_options,
        usage=making.usage,
        record=making.record,
    )


def _envelope(answer_id: str, model: ServedModel, info: EngineInfo) -> dict[str, Any]:
    return {
        "id": answer_id,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": _fingerprint(info.base_digest, model.parents),
    }


@lru_cache(maxsize=1024)
def _fingerprint(base_digest: str, parents: tuple[Parent, ...]) -> str:
    """Same fingerprint, seed and request: same answer."""
    versions = " ".join(f"{parent.digest}*{parent.weight!r}" for parent in parents)
    parts = f"{multiflora.__version__} {base_digest} {versions}"
    return f"fp_{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def version_headers(model: ServedModel) -> dict[str, str]:
    """Which versions answered, in the order of a blend; the base alone has no such headers."""
    if not model.parents:
        return {}
    return {
        "x-adapter-id": ",".join(parent.name for parent in model.parents),
        "x-adapter-version": ",".join(model.digests),
    }
