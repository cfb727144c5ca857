"""Applications that stream answers, behind an engine that costs next to nothing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import orjson
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from multiflora.engine.client import EngineClient
from multiflora.engine.messages import Abort, Command, Events, Ready, Report, Submit
from multiflora.engine.request import EngineInfo, FinishReason, GenerationRequest, TokenEvent
from multiflora.engine.text.template_renderer import TemplateRenderer
from multiflora.server.answer_shape import ChatShape, token_detail
from multiflora.server.app import create_app
from multiflora.server.base_model import read_base_model
from multiflora.server.drain import Drain
from multiflora.server.file_checker import FileChecker
from multiflora.server.generation import Delta
from multiflora.server.metrics import Metrics
from multiflora.server.publishing import Publisher
from multiflora.server.schemas.chat import ChatBody
from multiflora.server.serve import make_service, open_files, open_keyring, open_registry
from multiflora.server.settings import ServeSettings
from multiflora.server.streaming import ChunkWriter, EventStream
from multiflora.server.usage import UsageCount

PATH: Final = "/v1/chat/completions"
MARK: Final = b"data: "
# All of this server; its way from a piece of text to the socket; and the two bare ones.
VARIANTS: Final = ("multiflora", "stream", "orjson", "pydantic")
_ENVELOPE: Final = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_800_000_000,
    "model": "multiflora-demo",
    "system_fingerprint": "fp_0123456789abcdef",
}
TEXT: Final = "The quick brown fox jumps over the lazy dog, and then it goes home again. "


class SteadyEngine:
    """A transport whose engine gives every open request a token per step, and steps when asked."""

    def __init__(self, tokens: tuple[int, ...], info: EngineInfo) -> None:
        self._tokens = tokens
        self._info = info
        self._open: dict[str, tuple[GenerationRequest, int]] = {}
        self._on_report: Callable[[Report], None] | None = None
        self._stepping: asyncio.Task[None] | None = None

    async def start(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        self._on_report = on_report
        on_report(Ready(self._info))

    def send(self, command: Command) -> None:
        if isinstance(command, Submit):
            self._open[command.request.id] = (command.request, 0)
            if self._stepping is None or self._stepping.done():
                self._stepping = asyncio.create_task(self._step())
        elif isinstance(command, Abort):
            self._open.pop(command.request_id, None)

    def kill(self) -> None:
        self._open.clear()

    async def stop(self) -> None:
        self._open.clear()

    async def _step(self) -> None:
        assert self._on_report is not None
        while self._open:
            events = []
            for key, (request, count) in tuple(self._open.items()):
                is_last = count + 1 == request.sampling.max_tokens
                events.append(
                    TokenEvent(
                        request_id=key,
                        tokens=(self._tokens[count % len(self._tokens)],),
                        finish_reason=FinishReason.LENGTH if is_last else None,
                    )
                )
                if is_last:
                    del self._open[key]
                else:
                    self._open[key] = (request, count + 1)
            self._on_report(Events(tuple(events)))
            # Everybody writes before the next step, as between two steps of a real engine.
            for _ in range(4):
                await asyncio.sleep(0)


class _Delta(BaseModel):
    role: str | None = None
    content: str | None = None


class _Choice(BaseModel):
    index: int
    delta: _Delta
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _Chunk(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[_Choice]


def _bare_app(*, with_pydantic: bool) -> Starlette:
    """A response that writes an event per step and does nothing else."""

    def event(text: str) -> bytes:
        if with_pydantic:
            choice = _Choice(index=0, delta=_Delta(content=text))
            chunk = _Chunk(**_ENVELOPE, choices=[choice])  # type: ignore[arg-type]
            return MARK + chunk.model_dump_json().encode() + b"\n\n"
        shown = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        return MARK + orjson.dumps({**_ENVELOPE, "choices": [shown]}) + b"\n\n"

    async def events(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield event(" word")

    async def answer(request: Request) -> StreamingResponse:
        body = orjson.loads(await request.body())
        return StreamingResponse(events(body["max_tokens"]), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def _stream_app() -> Starlette:
    """This server's own stream, fed with pieces of text."""
    tokenizer = read_base_model(ServeSettings()).tokenizer
    metrics = Metrics(EngineClient(SteadyEngine((), engine_info("", 1))))

    async def pieces(count: int) -> AsyncGenerator[Delta]:
        for number in range(2, count + 1):
            await asyncio.sleep(0)
            yield Delta(index=0, text=" word", num_tokens=number, cached_tokens=0, tokens=(7,))

    async def answer(request: Request) -> EventStream:
        body = ChatBody.model_validate_json(await request.body())
        async with AsyncExitStack() as held:
            writer = ChunkWriter(
                envelope=_ENVELOPE,
                opening={},
                shape=ChatShape(token_detail(tokenizer, body)),
                options=body.stream_options,
                usage=UsageCount([1], num_choices=1),
                record=held.enter_context(metrics.request("base")),
            )
            first = Delta(index=0, text="A", num_tokens=1, cached_tokens=0, tokens=(7,))
            events = writer.events(first, pieces(body.max_tokens or 1))
            return EventStream(events, resources=held.pop_all(), headers={})

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


@asynccontextmanager
async def _own_app(folder: Path) -> AsyncIterator[tuple[Any, Drain]]:
    """All of this server but its engine."""
    settings = ServeSettings(data_dir=folder)
    base = read_base_model(settings)
    config = settings.engine_config(base.folder)
    tokens = tuple(base.tokenizer.encode(TEXT * 4))
    async with AsyncExitStack() as held:
        registry = held.enter_context(closing(open_registry(folder, base)))
        publisher = held.enter_context(closing(Publisher(registry)))
        checker = held.enter_context(closing(FileChecker(open_files(folder, registry))))
        client = EngineClient(
            SteadyEngine(tokens, engine_info(base.name, base.tokenizer.vocab_size))
        )
        renderer = TemplateRenderer(base.chat_template)
        keyring = open_keyring(settings, registry)
        service = make_service(
            settings, client, base, config, registry, publisher, checker, keyring, renderer
        )
        held.callback(service.merger.close)
        await renderer.start()
        held.push_async_callback(renderer.stop)
        await client.start()
        yield create_app(service), service.drain


def engine_info(name: str, vocab_size: int) -> EngineInfo:
    return EngineInfo(
        model=name,
        family="llama",
        base_digest="0" * 64,
        max_model_len=1 << 24,
        vocab_size=vocab_size,
        device="cpu",
        kernels="none",
        dtype="float32",
        quantization="nf4",
        num_kv_blocks=1,
        block_size=16,
        base_bytes=1,
        kv_cache_bytes=1,
        adapter_bytes=1,
        load_seconds=0.0,
    )


@asynccontextmanager
async def made_app(variant: str, folder: Path) -> AsyncIterator[tuple[Any, Drain]]:
    if variant == "multiflora":
        async with _own_app(folder) as made:
            yield made
    elif variant == "stream":
        yield _stream_app(), Drain()
    else:
        yield _bare_app(with_pydantic=variant == "pydantic"), Drain()
