"""An engine that says what it is told to."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.tier import Tier
from multiflora.engine.client import EngineState
from multiflora.engine.errors import EngineUnavailable
from multiflora.engine.request import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenScore,
)
from multiflora.engine.text.tokenizer import Tokenizer

MAX_MODEL_LEN = 256
Event = TokenEvent | Exception | float


@dataclass
class FakeEngine:
    """Answers every request with ``script``: events, errors to raise, and seconds to wait."""

    tokenizer: Tokenizer
    state: EngineState = EngineState.READY
    text: str = "hello world"
    script: Callable[[GenerationRequest], Sequence[Event]] | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    closed_early: list[str] = field(default_factory=list)
    num_stops: int = 0
    tiers: dict[str, Tier] = field(default_factory=dict)
    pins: dict[str, None] = field(default_factory=dict)
    room_for_pins: int = 8

    @property
    def info(self) -> EngineInfo:
        if self.state is EngineState.STARTING:
            raise EngineUnavailable("the engine is starting")
        return EngineInfo(
            model="fake",
            family="fake",
            base_digest="c" * 64,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=self.tokenizer.vocab_size,
            device="cpu",
            kernels="torch",
            dtype="float32",
            quantization="nf4",
            num_kv_blocks=8,
            block_size=16,
            base_bytes=1,
            kv_cache_bytes=1,
            adapter_bytes=1,
            load_seconds=0.0,
        )

    @property
    def num_streams(self) -> int:
        return len(self.running)

    async def start(self) -> EngineInfo:
        self.state = EngineState.READY
        return self.info

    async def stop(self) -> None:
        self.num_stops += 1
        self.state = EngineState.STOPPED

    def kill(self) -> None:
        self.state = EngineState.RESTARTING

    async def load_version(self, digest: str) -> None:
        self.tiers.setdefault(digest, Tier.HOST)

    async def unload_version(self, digest: str) -> None:
        self.tiers.pop(digest, None)

    @property
    def pinned_versions(self) -> tuple[str, ...]:
        return tuple(self.pins)

    async def pin(self, digest: str) -> None:
        if self.state is not EngineState.READY:
            raise EngineUnavailable("the engine is starting")
        if len(self.pins | {digest: None}) > self.room_for_pins:
            raise AdapterRejected("pin_too_large", "pins leave no room; unpin another adapter")
        self.pins[digest] = None
        self.tiers[digest] = Tier.DEVICE

    async def unpin(self, digest: str) -> None:
        self.pins.pop(digest, None)

    async def adapter_states(self) -> dict[str, Tier]:
        if self.state is not EngineState.READY:
            raise EngineUnavailable("the engine is starting")
        return self.tiers

    async def stats(self) -> EngineStats:
        return EngineStats(steps=7, num_running=len(self.running), requests_finished={"stop": 3})

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        self.requests.append(request)
        self.running.add(request.id)
        is_finished = False
        try:
            for event in (self.script or self.say)(request):
                if isinstance(event, float | int):
                    await asyncio.sleep(event)
                    continue
                if isinstance(event, Exception):
                    raise event
                is_finished = event.finish_reason is not None
                yield event
                await asyncio.sleep(0)
        finally:
            self.running.discard(request.id)
            if not is_finished:
                self.closed_early.append(request.id)

    def say(self, request: GenerationRequest) -> list[Event]:
        """The fixed text, a token per event, cut at ``max_tokens``; or the embedding (3, 4)."""
        if request.wants_embedding:
            vector = struct.pack("<2f", 3, 4)
            event = self.event(request, [], reason=FinishReason.LENGTH)
            return [replace(event, embedding=vector)]
        tokens = self.tokenizer.encode(self.text)[: request.sampling.max_tokens]
        is_cut = len(tokens) == request.sampling.max_tokens
        reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        events = [self.event(request, [token]) for token in tokens]
        return [*self.read_prompt(request), *events, self.event(request, [], reason=reason)]

    def read_prompt(self, request: GenerationRequest) -> list[Event]:
        """Scores of the prompt, in two pieces."""
        count = request.sampling.prompt_logprobs
        if count is None:
            return []
        scores = [self.score(token, count) for token in request.prompt[1:]]
        pieces = (scores[:1], scores[1:])
        return [TokenEvent(request_id=request.id, prompt_scores=tuple(p)) for p in pieces]

    def score(self, token: int, count: int) -> TokenScore:
        """The likeliest is always token 40."""
        top = tuple(range(40, 40 + count))
        return TokenScore(-2.0 - token / 100, top, tuple(-1.0 - place for place in range(count)))

    def event(
        self,
        request: GenerationRequest,
        tokens: Sequence[int],
        *,
        reason: FinishReason | None = None,
        error: str | None = None,
        code: str | None = None,
    ) -> TokenEvent:
        return TokenEvent(
            request_id=request.id,
            tokens=tuple(tokens),
            finish_reason=reason,
            cached_tokens=2,
            scores=self._scores(request, tokens),
            error=error,
            error_code=code,
        )

    def _scores(self, request: GenerationRequest, tokens: Sequence[int]) -> tuple[TokenScore, ...]:
        count = request.sampling.logprobs
        return () if count is None else tuple(self.score(token, count) for token in tokens)
