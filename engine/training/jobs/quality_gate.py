"""The quality gate: what a trained version must show before a name points at it.

It answers prompts of its training data through the serving engine itself, since that is what its
users will meet; losses are those that the trainer measured on the validation file.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, Final, Protocol

from ...request import AdapterShare, FinishReason, GenerationRequest, SamplingParams, TokenEvent
from ..data.dataset import PreparedDataset
from ..example import Item, Preference, Rating
from .gate_settings import GateSettings

_LONGEST_LOOP, _LOOP_ROUNDS, _LOOP_TOKENS = 32, 4, 16
# Lengths that differ by less are the same: short answers jump by a factor with one word.
_LENGTH_SLACK: Final = 8
_FEW_TOKENS: Final = 16


class Generator(Protocol):
    """The serving engine, as ``EngineClient`` is one."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One bar: the measured ``value`` and the ``limit`` that it must keep, in words ``rule``."""

    name: str
    passed: bool
    rule: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks; the version passes if each of them does."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def complaint(self) -> str:
        """The failed checks in one line."""
        return "; ".join(f"{check.name}: {check.rule}" for check in self.checks if not check.passed)

    def document(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


@dataclass(frozen=True, slots=True)
class _Sample:
    """A prompt, and the answer that the training data gives to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    is_ended: bool


class QualityGate:
    """Judges versions with ``client``; answers end at ``end_tokens``, the base's."""

    def __init__(
        self, client: Generator, *, end_tokens: frozenset[int], max_model_len: int
    ) -> None:
        self._client = client
        self._end_tokens = end_tokens
        self._max_model_len = max_model_len

    async def judge(
        self,
        digest: str,
        *,
        data: PreparedDataset,
        metrics: Sequence[Mapping[str, Any]],
        step: int,
        settings: GateSettings,
        seed: int = 0,
    ) -> Verdict:
        """The verdict on a stored version that has the factors of ``step``.

        Raises what ``generate`` raises when the engine is not there or cannot load the version.
        """
        checks = [_finite(metrics), *_losses(metrics, step, settings)]
        samples = _samples(data, settings.num_prompts, self._max_model_len, seed)
        if samples:
            longest = max(len(sample.answer) for sample in samples)
            limit = max(_FEW_TOKENS, 2 * longest)
            answers = await asyncio.gather(
                *(self._answer(digest, place, one, limit) for place, one in enumerate(samples))
            )
            checks += self._answers(samples, answers, settings)
        return Verdict(tuple(checks))

    async def _answer(self, digest: str, place: int, sample: _Sample, limit: int) -> _Answer:
        room = self._max_model_len - len(sample.prompt)
        request = GenerationRequest(
            id=f"gate-{digest[:16]}-{place}",
            prompt=sample.prompt,
            sampling=SamplingParams(max_tokens=min(limit, room), temperature=0.0),
            adapters=(AdapterShare(digest),),
            cache_salt=f"gate-{digest}",
        )
        tokens: list[int] = []
        is_ended = False
        async with aclosing(self._client.generate(request)) as events:
            async for event in events:
                tokens += event.tokens
                is_ended = event.finish_reason is FinishReason.STOP
        return _Answer(tuple(tokens), is_ended)

    def _answers(
        self, samples: Sequence[_Sample], answers: Sequence[_Answer], settings: GateSettings
    ) -> list[Check]:
        taught = mean(not self._end_tokens.isdisjoint(sample.answer) for sample in samples)
        ended = mean(answer.is_ended for answer in answers)
        floor = settings.min_end_rate * taught
        loops = mean(is_loop(answer.tokens) for answer in answers)
        most = settings.max_loop_rate + mean(is_loop(sample.answer) for sample in samples)
        return [
            Check(
                name="end_rate",
                passed=ended >= floor,
                rule=f"{ended:.0%} of {len(answers)} sampled answers end by themselves; at least "
                f"{floor:.0%} must, as {taught:.0%} do in the training data",
                value=ended,
                limit=floor,
            ),
            Check(
                name="loop_rate",
                passed=loops <= most,
                rule=f"{loops:.0%} of the answers end in a loop; at most {most:.0%} may",
                value=loops,
                limit=most,
            ),
            _length(samples, answers, settings.length_factor),
        ]


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the end repeats a run of up to 32 tokens at least four times, over 16 tokens."""
    for size in range(1, _LONGEST_LOOP + 1):
        rounds = max(_LOOP_ROUNDS, math.ceil(_LOOP_TOKENS / size))
        span = size * rounds
        if len(tokens) < span:
            continue
        tail = tuple(tokens[-span:])
        if tail == tail[:size] * rounds:
            return True
    return False


def _finite(metrics: Sequence[Mapping[str, Any]]) -> Check:
    """The weights were checked value by value on their way into the store; these are the losses."""
    losses = [row[name] for row in metrics for name in ("loss", "eval_loss") if name in row]
    is_finite = all(loss is not None and math.isfinite(loss) for loss in losses)
    return Check(name="finite", passed=is_finite, rule="weights and losses must be finite")


def _losses(metrics: Sequence[Mapping[str, Any]], step: int, settings: GateSettings) -> list[Check]:
    evaluations = [row for row in metrics if "eval_loss" in row and row["step"] <= step]
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    limit = first["eval_loss"] * (1 + settings.max_loss_increase)
    rule = (
        f"the validation loss is {last['eval_loss']:.4g} after step {last['step']}, and "
        f"{first['eval_loss']:.4g} at the first evaluation, after step {first['step']}; it may be "
        f"{limit:.4g}"
    )
    passed = last["eval_loss"] <= limit
    return [
        Check(
            name="validation_loss", passed=passed, rule=rule, value=last["eval_loss"], limit=limit
        )
    ]


def _length(samples: Sequence[_Sample], answers: Sequence[_Answer], factor: float) -> Check:
    taught = mean(len(sample.answer) for sample in samples)
    given = mean(len(answer.tokens) for answer in answers)
    low, high = taught / factor - _LENGTH_SLACK, taught * factor + _LENGTH_SLACK
    return Check(
        name="length",
        passed=low <= given <= high,
        rule=f"answers have {given:.1f} tokens on average, {taught:.1f} in the training data; "
        f"{max(0.0, low):.1f} to {high:.1f} are allowed",
        value=given,
        limit=high,
    )


def _samples(
    data: PreparedDataset, num_prompts: int, max_model_len: int, seed: int
) -> list[_Sample]:
    places = list(range(len(data)))
    random.Random(seed).shuffle(places)
    found: list[_Sample] = []
    for place in places:
        if len(found) == num_prompts:
            break
        sample = _sample(data[place])
        if sample is not None and len(sample.prompt) < max_model_len:
            found.append(sample)
    return found


def _sample(item: Item) -> _Sample | None:
    """The last answer of an example and all before it; None for one without a prompt."""
    if isinstance(item, Preference):
        return _Sample(item.prompt, item.chosen) if item.prompt else None
    if isinstance(item, Rating):
        # A bad completion is no answer to measure others by.
        return _Sample(item.prompt, item.completion) if item.is_desirable else None
    end = max(place for place, weight in enumerate(item.weights) if weight == 1.0) + 1
    start = end
    while start and item.weights[start - 1] == 1.0:
        start -= 1
    return _Sample(item.ids[:start], item.ids[start:end]) if start > 1 else None
