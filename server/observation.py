"""What is noted of an answer while it is written: its outcome, and its text where it is kept."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from multiflora.engine.errors import RequestFailed, RequestRejected
from multiflora.engine.request import FinishReason
from multiflora.engine.training.feedback.completion import Completion, Prompt
from multiflora.engine.training.learning.learner import Learner
from multiflora.engine.training.learning.traffic import Outcome

from .catalog import ServedModel
from .generation import Delta
from .kept_prompt import kept_prompts
from .schemas.sampling import SamplingBody

_ABORTED: Final = "aborted"


@dataclass(slots=True)
class _Choice:
    """One sequence of the answer; ``began`` and ``ended`` are when its tokens came."""

    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_first: int = 0
    began: float | None = None
    ended: float = 0.0
    reason: FinishReason | None = None

    def add(self, delta: Delta, now: float) -> None:
        self.texts.append(delta.text)
        if delta.num_tokens > self.num_tokens:
            if self.began is None:
                self.began, self.num_first = now, delta.num_tokens
            self.ended = now
        self.num_tokens = delta.num_tokens
        self.reason = delta.finish_reason or self.reason

    def outcome(self, asked: float) -> Outcome:
        if self.began is None:
            return Outcome(num_tokens=self.num_tokens)
        num_gaps = self.num_tokens - self.num_first
        pace = (self.ended - self.began) / num_gaps if num_gaps else None
        return Outcome(num_tokens=self.num_tokens, first_token=self.began - asked, inter_token=pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Of one answer of one version. ``prompts`` are None where nothing may be kept."""

    learner: Learner
    adapter: str
    digest: str
    answer_id: str
    prompts: Sequence[Prompt] | None
    body: SamplingBody
    tenant: str

    async def watch(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The same deltas; what is noted is noted before the last of them is passed on."""
        choices: dict[int, _Choice] = {}
        asked = time.perf_counter()
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    choice = choices.setdefault(delta.index, _Choice())
                    choice.add(delta, time.perf_counter())
                    if delta.finish_reason is not None:
                        self._note(delta.index, choice, asked)
                    yield delta
        except RequestFailed as error:
            if error.code != _ABORTED:
                self._count(Outcome(is_error=True))
            raise

    def _note(self, index: int, choice: _Choice, asked: float) -> None:
        self._count(choice.outcome(asked))
        if self.prompts is None:
            return
        self.learner.inbox.put(
            Completion(
                id=self.answer_id,
                choice=index,
                adapter=self.adapter,
                digest=self.digest,
                prompt=self.prompts[index // self.body.n],
                answer="".join(choice.texts),
                created=int(time.time()),
                tenant=self.tenant,
                user=self.body.user,
                is_cut=choice.reason is FinishReason.LENGTH,
            )
        )

    def _count(self, outcome: Outcome) -> None:
        self.learner.windows.add(self.adapter, self.digest, outcome)


def observed(
    deltas: AsyncGenerator[Delta],
    learner: Learner,
    model: ServedModel,
    body: SamplingBody,
    answer_id: str,
    *,
    tenant: str,
) -> AsyncGenerator[Delta]:
    """``deltas``, watched where the adapter learns: a blend, or the base, has no such policy.

    ``tenant`` is who asks.
    """
    if len(model.parents) != 1:
        return deltas
    (parent,) = model.parents
    is_kept = parent.weight == 1.0 and learner.is_keeping(parent.name) and body.store is not False
    if not is_kept and not learner.windows.has(parent.name, parent.digest):
        return deltas
    return Observation(
        learner=learner,
        adapter=parent.name,
        digest=parent.digest,
        answer_id=answer_id,
        prompts=kept_prompts(body) if is_kept else None,
        body=body,
        tenant=tenant,
    ).watch(deltas)


def check_store(learner: Learner, model: ServedModel, store: bool | None) -> None:
    """Raise ``RequestRejected`` where an answer is to be stored that is not kept."""
    is_kept = len(model.parents) == 1 and learner.is_keeping(model.parents[0].name)
    if store and not is_kept:
        raise RequestRejected(
            "store is true, but answers are kept for feedback on an adapter that opted in, and "
            "for nothing else; leave it out, or PUT /v1/adapters/{name}/learning",
            param="store",
        )
