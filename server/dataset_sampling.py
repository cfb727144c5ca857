"""Rejection sampling: a model answers prompts many times; what passes becomes a training file."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson

from multiflora.engine.errors import EngineOverloaded, PromptTooLong
from multiflora.engine.request import FinishReason, GenerationRequest, SamplingParams
from multiflora.engine.text.answer_text import TextRules
from multiflora.engine.training.data.file_registry import StoredFile
from multiflora.engine.training.feedback.completion import Prompt
from multiflora.engine.training.feedback.training_row import as_jsonl
from multiflora.engine.training.sampling.grader import Grader
from multiflora.engine.training.sampling.pass_rate import pass_rates
from multiflora.engine.training.sampling.prompt_row import SampledPrompt

from .access.caller import Caller
from .admission import Order
from .background_job import BackgroundJob
from .catalog import ServedModel
from .generation import SequenceJob, generate
from .prompting import tokenize_chat, tokenize_prompts
from .schemas.chat import ChatBody
from .schemas.dataset_sampling import JudgeBody, SampleBody
from .schemas.file import file_name
from .schemas.sampling import derived_seed
from .service import Service

_SEQUENCES_AT_ONCE: Final = 64
_VERDICT_TOKENS: Final = 8
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """``is_cut``: it did not end by itself, and teaches no end."""

    text: str
    is_cut: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Graded:
    """A prompt with the answers that passed, in the order in which they were drawn."""

    prompt: SampledPrompt
    passed: tuple[str, ...]
    num_cut: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Asker:
    """Asks models on behalf of whoever ordered the sampling, for as long as its key is good."""

    service: Service
    caller: Caller

    async def answers(
        self,
        model: ServedModel,
        prompt: Prompt,
        request_id: str,
        seeds: Sequence[int],
        sampling: dict[str, Any],
    ) -> list[_Answer]:
        """One answer per seed; a full queue and used-up limits are waited for."""
        jobs = await self._jobs(model, prompt, request_id, seeds, sampling)
        pause = _FIRST_PAUSE
        while True:
            self.service.keyring.caller_of(self.caller.id)
            try:
                with self.service.admission.admitted(self._order(model, jobs)) as ticket:
                    return await _run(self.service, jobs, on_first=ticket.begin)
            except EngineOverloaded:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)

    async def _jobs(
        self,
        model: ServedModel,
        prompt: Prompt,
        request_id: str,
        seeds: Sequence[int],
        sampling: dict[str, Any],
    ) -> list[SequenceJob]:
        service = self.service
        tokens = await _tokens(service, model, prompt)
        room = service.client.info.max_model_len - len(tokens)
        if room < 1:
            raise PromptTooLong(
                f"a prompt has {len(tokens)} tokens, which leaves no room to answer"
            )
        sampling = {**sampling, "max_tokens": min(sampling["max_tokens"], room)}
        rules = TextRules(end_tokens=service.end_tokens)
        return [
            SequenceJob(
                index=index,
                request=GenerationRequest(
                    id=f"{request_id}-{index}",
                    prompt=tuple(tokens),
                    sampling=SamplingParams(**sampling, seed=seed),
                    adapters=model.shares(),
                    tenant=self.caller.tenant,
                ),
                rules=rules,
            )
            for index, seed in enumerate(seeds)
        ]

    def _order(self, model: ServedModel, jobs: Sequence[SequenceJob]) -> Order:
        requests = [job.request for job in jobs]
        num_prompt_tokens = sum(len(request.prompt) for request in requests)
        return Order(
            caller=self.caller,
            adapter=model.name if model.parents else None,
            num_sequences=len(jobs),
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=num_prompt_tokens + sum(one.sampling.max_tokens for one in requests),
        )


class _Sampling:
    """One order: ``model`` answers, ``grader`` or a judge decides."""

    def __init__(
        self,
        asker: _Asker,
        body: SampleBody,
        model: ServedModel,
        grade: "Grader | _Judge",
        sampling_id: str,
    ) -> None:
        self._asker = asker
        self._body = body
        self._model = model
        self._grade = grade
        self._id = sampling_id
        self._room = asyncio.Semaphore(max(1, _SEQUENCES_AT_ONCE // body.n))

    async def grade(self, place: int, prompt: SampledPrompt) -> _Graded:
        async with self._room:
            body = self._body
            seeds = [derived_seed(body.seed, place * body.n + one) for one in range(body.n)]
            sampling = {
                "max_tokens": body.max_tokens,
                "temperature": body.temperature,
                "top_p": body.top_p,
            }
            request_id = f"{self._id}-{place}"
            answers = await self._asker.answers(
                self._model, prompt.prompt, request_id, seeds, sampling
            )
            passed = [
                answer.text
                for answer in answers
                if not answer.is_cut and answer.text.strip() and await self._passes(prompt, answer)
            ]
        return _Graded(
            prompt,
            tuple(passed),
            sum(answer.is_cut for answer in answers),
            sum(answer.num_tokens for answer in answers),
        )

    async def _passes(self, prompt: SampledPrompt, answer: _Answer) -> bool:
        if isinstance(self._grade, _Judge):
            return await self._grade.passes(prompt, answer.text)
        return await asyncio.to_thread(self._grade.passes, answer.text, prompt.expected)


@dataclass(frozen=True, slots=True)
class _Judge:
    """A served model that says yes or no."""

    asker: _Asker
    model: ServedModel
    question: str
    sampling_id: str

    async def passes(self, prompt: SampledPrompt, answer: str) -> bool:
        asked = prompt.prompt if isinstance(prompt.prompt, str) else prompt.prompt[-1]["content"]
        text = self.question
        for name, value in (("prompt", asked), ("answer", answer), ("expected", prompt.expected)):
            text = text.replace(f"{{{name}}}", value or "")
        (verdict,) = await self.asker.answers(
            self.model,
            [{"role": "user", "content": text}],
            f"{self.sampling_id}-judge-{time.monotonic_ns()}",
            [0],
            {"max_tokens": _VERDICT_TOKENS, "temperature": 0.0},
        )
        return verdict.text.strip().casefold().startswith("yes")


async def sample_dataset(
    service: Service,
    caller: Caller,
    body: SampleBody,
    prompts: Sequence[SampledPrompt],
    job: BackgroundJob,
) -> dict[str, Any]:
    """Answer, grade, and store the rows as a file of ``caller``'s tenant; returns the report.

    Raises ``ModelNotFound``, ``PromptTooLong``, ``Cancelled``, ``InvalidKey`` once the caller's key
    is not good any more, and what the engine raises.
    """
    started = time.monotonic()
    asker, view = _Asker(service, caller), caller.view
    with ExitStack() as held:
        model = held.enter_context(service.catalog.lease(body.model, view=view))
        if isinstance(body.grader, JudgeBody):
            judge = held.enter_context(
                service.catalog.lease(body.grader.model, param="grader.model", view=view)
            )
            grade = _Judge(asker, judge, body.grader.question, job.id)
        else:
            grade = body.grader.grader()
        sampling = _Sampling(asker, body, model, grade, job.id)
        graded = await _all(sampling, prompts, job)
        job.cancellation.seal()
        versions = model.digests
    rows = [
        one.prompt.row(answer)
        for one in graded
        for answer in list(dict.fromkeys(one.passed))[: body.keep]
    ]
    file = None
    if rows:
        file = await asyncio.to_thread(_store, service, body.model, rows, caller.tenant)
    return {
        "model": body.model,
        "version": versions[0] if versions else None,
        "prompts": len(graded),
        "n": body.n,
        "answers": len(graded) * body.n,
        "passed": sum(len(one.passed) for one in graded),
        "cut_off": sum(one.num_cut for one in graded),
        "unsolved_prompts": sum(not one.passed for one in graded),
        "pass_rates": pass_rates([len(one.passed) for one in graded], body.n),
        "rows": len(rows),
        "file": file.id if file else None,
        "generated_tokens": sum(one.num_tokens for one in graded),
        "seconds": round(time.monotonic() - started, 3),
    }


async def _all(
    sampling: _Sampling, prompts: Sequence[SampledPrompt], job: BackgroundJob
) -> list[_Graded]:
    num_done = 0

    async def one(place: int, prompt: SampledPrompt) -> _Graded:
        nonlocal num_done
        graded = await sampling.grade(place, prompt)
        job.cancellation.check()
        num_done += 1
        job.tell(num_done / len(prompts))
        return graded

    tasks = [asyncio.create_task(one(*each)) for each in enumerate(prompts)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(
    service: Service, jobs: Sequence[SequenceJob], *, on_first: Callable[[], None]
) -> list[_Answer]:
    texts: list[list[str]] = [[] for _ in jobs]
    reasons: list[FinishReason | None] = [None for _ in jobs]
    lengths = [0 for _ in jobs]
    async with aclosing(generate(service.client, service.tokenizer, jobs)) as deltas:
        async for delta in deltas:
            on_first()
            texts[delta.index].append(delta.text)
            lengths[delta.index] = delta.num_tokens
            reasons[delta.index] = delta.finish_reason or reasons[delta.index]
    return [
        _Answer("".join(parts), reason is not FinishReason.STOP, length)
        for parts, reason, length in zip(texts, reasons, lengths, strict=True)
    ]


async def _tokens(service: Service, model: ServedModel, prompt: Prompt) -> Sequence[int]:
    limit = service.client.info.max_model_len
    if isinstance(prompt, str):
        (tokens,) = await service.text_work.run(
            len(prompt), tokenize_prompts, service.tokenizer, [prompt], max_model_len=limit
        )
        return tokens
    messages = [dict(one) for one in prompt]
    (tokens,) = await tokenize_chat(
        service.text_work,
        service.tokenizer,
        ChatBody.model_validate({"model": "", "messages": messages}),
        renderer=service.renderer(model),
        num_bytes=len(orjson.dumps(messages)),
        max_model_len=limit,
    )
    return tokens


def _store(service: Service, model: str, rows: Sequence[dict[str, Any]], tenant: str) -> StoredFile:
    with service.files.staging() as folder:
        staged = folder / "rows"
        staged.write_bytes(b"".join(as_jsonl(rows)))
        return service.files.add(
            staged,
            filename=file_name(f"samples-{model}.jsonl"),
            purpose="fine-tune",
            status="processed",
            tenant=tenant,
        )
