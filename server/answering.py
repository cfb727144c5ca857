"""The way of every inference request: resolve, tokenize, check, generate, write."""

import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson
from fastapi import Request, Response

import multiflora
from multiflora.engine.errors import InvalidToken, PromptTooLong, RequestRejected
from multiflora.engine.request import EngineInfo, GenerationRequest

from .access.caller import Caller, caller_of
from .admission import Order
from .answer_shape import AnswerShape
from .catalog import Parent, ServedModel
from .deadline import timeout_of, until_deadline
from .disconnect import until_disconnect
from .generation import Delta, SequenceJob, generate
from .metrics import RequestRecord
from .schemas.sampling import SamplingBody
from .selection import lease_selected
from .service import Service
from .streaming import ChunkWriter, EventStream
from .usage import UsageCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A checked body with what its route knows about it.

    ``max_tokens`` is what the client asked for, else ``default_max_tokens`` or all that fits.
    """

    body: SamplingBody
    shape: AnswerShape
    tokenize: Callable[..., Awaitable[Sequence[Sequence[int]]]]
    max_tokens: int | None
    default_max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """An answer in the making."""

    envelope: dict[str, Any]
    headers: dict[str, str]
    usage: UsageCount
    record: RequestRecord


async def answer(request: Request, service: Service, question: Question) -> Response:
    """Answer a question; whatever it holds is let go exactly once, however it ends."""
    body, caller = question.body, caller_of(request)
    async with AsyncExitStack() as resources:
        resources.enter_context(service.drain.running())
        service.admission.check_room()
        timeout_seconds = timeout_of(request.headers, default=service.request_timeout_seconds)
        model = resources.enter_context(lease_selected(service.catalog, body, view=caller.view))
        record = resources.enter_context(service.metrics.request(model.name))
        info = service.client.info
        prompts = await question.tokenize(max_model_len=info.max_model_len)
        answer_id = f"{question.shape.id_prefix}-{uuid.uuid4().hex}"
        jobs = _jobs(service, question, prompts, info=info, model=model, answer_id=answer_id)
        jobs = [_for_tenant(job, caller.tenant) for job in jobs]
        order = _order(caller, model, jobs, timeout_seconds)
        ticket = resources.enter_context(service.admission.admitted(order))
        deltas = generate(service.client, service.tokenizer, jobs)
        deltas = until_deadline(deltas, timeout_seconds)
        resources.push_async_callback(deltas.aclose)
        record.on_first_token = ticket.begin
        making = _Answer(
            envelope=_envelope(answer_id, model, info),
            headers=_headers(model),
            usage=UsageCount([len(prompt) for prompt in prompts], num_choices=body.n),
            record=record,
        )
        ticket.num_answered = lambda: making.usage.num_generated
        if not body.stream:
            return await until_disconnect(request, _whole(making, question.shape, deltas))
        # The first delta comes before the status line, so that a refusal has its own status.
        first = await until_disconnect(request, anext(deltas))
        record.first_token()
        events = _writer(making, question).events(first, deltas)
        return EventStream(events, resources=resources.pop_all(), headers=making.headers)


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
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    async for delta in deltas:
        making.record.first_token()
        making.usage.add(delta)
        texts.setdefault(delta.index, []).append(delta.text)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason
    choices = [
        shape.choice(index, "".join(texts[index]), reasons[index]) for index in sorted(texts)
    ]
    making.record.succeed()
    content = {
        **making.envelope,
        "object": shape.kind,
        "choices": choices,
        "usage": making.usage.as_json(),
    }
    return Response(orjson.dumps(content), headers=making.headers, media_type="application/json")


def _writer(making: _Answer, question: Question) -> ChunkWriter:
    return ChunkWriter(
        envelope={**making.envelope, "object": question.shape.chunk_kind},
        shape=question.shape,
        options=question.body.stream_options,
        usage=making.usage,
        record=making.record,
    )


def _jobs(
    service: Service,
    question: Question,
    prompts: Sequence[Sequence[int]],
    *,
    info: EngineInfo,
    model: ServedModel,
    answer_id: str,
) -> list[SequenceJob]:
    """One job per prompt and choice, prompt by prompt."""
    body = question.body
    _check_number(len(prompts) * body.n, limit=service.limits.max_sequences)
    _check_tokens(body.stop_token_ids, info.vocab_size, param="stop_token_ids")
    end_tokens = frozenset(body.stop_token_ids)
    if not body.ignore_eos:
        end_tokens |= service.end_tokens
    jobs: list[SequenceJob] = []
    seeds = body.seeds()
    for prompt in prompts:
        _check_not_empty(prompt)
        _check_tokens(prompt, info.vocab_size, param="prompt")
        max_tokens = _max_tokens(question, len(prompt), info.max_model_len)
        for seed in seeds:
            request = GenerationRequest(
                id=f"{answer_id}-{len(jobs)}",
                prompt=tuple(prompt),
                sampling=body.sampling_params(max_tokens=max_tokens, seed=seed),
                adapters=model.shares(),
                cache_salt=body.cache_salt,
            )
            jobs.append(
                SequenceJob(
                    index=len(jobs), request=request, stops=tuple(body.stop), end_tokens=end_tokens
                )
            )
    return jobs


def _check_number(num_sequences: int, *, limit: int) -> None:
    if num_sequences > limit:
        raise RequestRejected(
            f"prompts times n is {num_sequences}; at most {limit} sequences fit in one request",
            param="prompt",
        )


def _check_not_empty(prompt: Sequence[int]) -> None:
    if not prompt:
        raise RequestRejected("the prompt has no tokens", param="prompt")


def _check_tokens(tokens: Sequence[int], vocab_size: int, *, param: str) -> None:
    if not tokens or (min(tokens) >= 0 and max(tokens) < vocab_size):
        return
    wrong = next(token for token in tokens if not 0 <= token < vocab_size)
    raise InvalidToken(
        f"token id {str(wrong)[:30]} is outside the vocabulary of {vocab_size} ids", param=param
    )


def _max_tokens(question: Question, prompt_length: int, max_model_len: int) -> int:
    room = max_model_len - prompt_length
    wanted = question.max_tokens
    if room < (wanted or 1):
        answer = f" plus {wanted} tokens of answer" if wanted else ""
        raise PromptTooLong(
            f"the context holds {max_model_len} tokens, but the prompt has {prompt_length}{answer}",
            param="messages" if question.default_max_tokens is None else "prompt",
        )
    return wanted or min(room, question.default_max_tokens or room)


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


def _headers(model: ServedModel) -> dict[str, str]:
    """Which versions answered, in the order of a blend; the base alone has no such headers."""
    if not model.parents:
        return {}
    return {
        "x-adapter-id": ",".join(parent.name for parent in model.parents),
        "x-adapter-version": ",".join(model.digests),
    }
