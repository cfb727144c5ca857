"""Asks versions through the serving engine: that is what their users will meet."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from ...request import AdapterShare, FinishReason, GenerationRequest, SamplingParams, TokenEvent


class Generator(Protocol):
    """The serving engine, as ``EngineClient`` is one."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens; ``is_ended`` if they ended by themselves."""

    tokens: tuple[int, ...]
    is_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Raises what ``generate`` raises when the engine is not there or cannot load a version."""

    client: Generator
    max_model_len: int

    async def answers(
        self, digest: str | None, prompts: Sequence[Sequence[int]], *, max_tokens: int, label: str
    ) -> list[Answer]:
        """All greedy, in the order of ``prompts``; ``digest`` None is the bare base.

        ``label`` keeps the ids of one batch of requests apart from another's.
        """
        return await asyncio.gather(
            *(
                self._answer(digest, tuple(prompt), max_tokens, f"{label}-{place}")
                for place, prompt in enumerate(prompts)
            )
        )

    async def _answer(
        self, digest: str | None, prompt: tuple[int, ...], max_tokens: int, label: str
    ) -> Answer:
        room = self.max_model_len - len(prompt)
        name = (digest or "base")[:16]
        request = GenerationRequest(
            id=f"gate-{name}-{label}",
            prompt=prompt,
            sampling=SamplingParams(max_tokens=max(1, min(max_tokens, room)), temperature=0.0),
            adapters=() if digest is None else (AdapterShare(digest),),
            cache_salt=f"gate-{digest}",
        )
        tokens: list[int] = []
        is_ended = False
        async with aclosing(self.client.generate(request)) as events:
            async for event in events:
                tokens += event.tokens
                is_ended = event.finish_reason is FinishReason.STOP
        return Answer(tuple(tokens), is_ended)
