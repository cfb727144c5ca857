"""What is measured about one inference request while it is answered."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from multiflora.engine.request import StageSeconds

from ..errors import http_error
from ..generation import Delta
from .board import Entries


@dataclass(slots=True)
class _Sequence:
    """``began`` and ``latest`` are when its first and its last tokens came."""

    began: float
    latest: float
    num_first: int
    num_tokens: int


@dataclass(slots=True)
class RequestRecord:
    """Without an outcome its client has gone. Times are readings of the performance counter.

    ``stages`` are those of the first sequence that has its first token.
    """

    entries: Entries
    role: str = "active"
    outcome: str = "disconnected"
    started: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    stages: StageSeconds | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    on_first_token: Callable[[], None] | None = None
    on_end: list[Callable[["RequestRecord"], None]] = field(default_factory=list)
    _prompts: Sequence[int] = ()
    _num_choices: int = 1
    _sequences: dict[int, _Sequence] = field(default_factory=dict)

    def ask(self, prompt_lengths: Sequence[int], *, num_choices: int) -> None:
        """What the engine is asked: prompts of so many tokens, each for so many answers."""
        self._prompts, self._num_choices = prompt_lengths, num_choices

    async def watch(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The same deltas, measured."""
        async with aclosing(deltas):
            async for delta in deltas:
                self._note(delta, time.perf_counter())
                yield delta

    def first_token(self) -> None:
        """Note the time, the first time only."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
            if self.on_first_token is not None:
                self.on_first_token()
            for tally in self.entries:
                tally.first_token.observe(self.first_token_at - self.started)

    def read_prompts(self) -> None:
        """Count prompts that have no answer of tokens."""
        for place in range(len(self._prompts)):
            self._count_prompt(place, 0)

    def succeed(self) -> None:
        self.outcome = "ok"

    def fail(self, error: Exception) -> None:
        self.outcome = http_error(error).code

    def end(self) -> None:
        """The request is over, however it ended."""
        seconds = time.perf_counter() - self.started
        for tally in self.entries:
            tally.outcomes[self.outcome] += 1
            tally.roles[self.role] += 1
            tally.whole.observe(seconds)
            tally.last_used = time.time()
        for sequence in self._sequences.values():
            self._count_answer(sequence)
        for tell in self.on_end:
            tell(self)

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self._sequences.values())

    def _note(self, delta: Delta, now: float) -> None:
        if self.first_token_at is None:
            self.first_token()
        sequence = self._sequences.get(delta.index)
        if sequence is None:
            count = delta.num_tokens
            self._sequences[delta.index] = _Sequence(now, now, count, count)
            self._begin(delta, count)
        elif delta.num_tokens > sequence.num_tokens:
            count = delta.num_tokens - sequence.num_tokens
            gap = (now - sequence.latest) / count
            sequence.num_tokens, sequence.latest = delta.num_tokens, now
            for tally in self.entries:
                tally.inter_token.observe(gap, count)
                tally.generated_tokens += count
        if delta.finish_reason is not None:
            self.entries.total.finished[delta.finish_reason.value] += 1

    def _begin(self, delta: Delta, count: int) -> None:
        if delta.index % self._num_choices == 0:
            self._count_prompt(delta.index // self._num_choices, delta.cached_tokens)
        for tally in self.entries:
            tally.generated_tokens += count
            if delta.stages is not None:
                tally.queue.observe(delta.stages.queue)
                tally.load.observe(delta.stages.load)
        if delta.stages is not None:
            self.entries.total.prefill.observe(delta.stages.prefill)
            self.stages = self.stages or delta.stages

    def _count_prompt(self, place: int, num_cached: int) -> None:
        length = self._prompts[place] if place < len(self._prompts) else 0
        self.num_prompt_tokens += length
        self.num_cached_tokens += num_cached
        self.entries.total.prompt_sizes.observe(length)
        for tally in self.entries:
            tally.prompt_tokens += length
            tally.cached_tokens += num_cached

    def _count_answer(self, sequence: _Sequence) -> None:
        total, seconds = self.entries.total, sequence.latest - sequence.began
        total.decode.observe(seconds)
        total.answer_sizes.observe(sequence.num_tokens)
        if sequence.num_tokens > sequence.num_first:
            total.per_token.observe(seconds / (sequence.num_tokens - sequence.num_first))
