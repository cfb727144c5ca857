"""The API process's side of the rendering process: one is kept, and replaced when it dies."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from multiflora.adapters.child_process import SAME_PATH, isolated_command, isolated_environment

from ..errors import EngineOverloaded, EngineUnavailable, RequestRejected
from ..frame import pack_frame, receive_frame
from .chat_template import ChatTemplate
from .template_process import Render, Rendered, Setup

logger = logging.getLogger(__name__)

_PROGRAM: Final = (
    SAME_PATH + "from multiflora.engine.text.template_process import main; main(int(sys.argv[2]))"
)
_MAX_WAITING: Final = 256
_BOOT_SECONDS: Final = 60.0


class Renderer(Protocol):
    """Renders conversations; ``ChatTemplate.render`` says what the arguments are.

    ``template`` is a source to use in place of the renderer's own templates.
    """

    async def render(self, messages: Any, **options: Any) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderLimits:
    """``cpu_seconds`` bound one render; ``wall_seconds`` are for one that neither runs nor ends."""

    memory_bytes: int = 512 << 20
    cpu_seconds: float = 0.25
    wall_seconds: float = 10.0


@dataclass(slots=True, eq=False)
class _Question:
    frame: bytes
    answer: "asyncio.Future[str]"
    num_deaths: int = 0


@dataclass(slots=True, eq=False)
class _Child:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_ready: bool = False
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


class TemplateRenderer:
    """All methods belong to one event loop. Questions go out at once and are answered in order.

    Whatever ends the process ends the question that it was at; the others are asked again. One at
    which two processes died for no known reason is given up.
    """

    def __init__(self, template: ChatTemplate, *, limits: RenderLimits | None = None) -> None:
        self._limits = limits or RenderLimits()
        self._setup = Setup(
            templates=template.sources,
            special_tokens=template.special_tokens,
            max_chars=template.max_chars,
            memory_bytes=self._limits.memory_bytes,
            cpu_seconds=self._limits.cpu_seconds,
        )
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Rendered)
        self._questions: deque[_Question] = deque()
        self._child: _Child | None = None
        self._starting: asyncio.Task[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Have the process ready before the first question; later ones start it by themselves."""
        if self._starting is None and self._child is None:
            self._starting = asyncio.create_task(self._start())
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """End the process; open questions fail."""
        self._is_stopped = True
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if (child := self._child) is not None:
            child.process.kill()
            await asyncio.wait(child.tasks)
        self._fail_all(EngineUnavailable("the server is shutting down"))

    async def render(self, messages: Any, *, template: str = "", **options: Any) -> str:
        """As `Renderer` says; raises ``RequestRejected``, also for what takes too much."""
        if self._is_stopped:
            raise EngineUnavailable("the server is shutting down")
        if len(self._questions) >= _MAX_WAITING:
            raise EngineOverloaded("too many chats wait to be rendered; try again shortly")
        fields = {"messages": messages, **options}
        question = _Question(
            pack_frame(self._encoder.encode(Render(fields, template))),
            asyncio.get_running_loop().create_future(),
        )
        self._questions.append(question)
        if self._child is not None:
            self._child.writer.write(question.frame)
            if len(self._questions) == 1:
                self._watch()
        elif self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await question.answer

    async def _start(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *isolated_command(_PROGRAM, str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=isolated_environment(),
                    cwd="/",
                    start_new_session=True,
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            logger.error("the rendering process cannot be started: %s", error.strerror)
            self._fail_all(EngineUnavailable("chats cannot be rendered now; try again shortly"))
            return
        finally:
            self._starting = None
        self.num_starts += 1
        self._child = child = _Child(process, reader, writer)
        writer.write(pack_frame(self._encoder.encode(self._setup)))
        for question in self._questions:
            writer.write(question.frame)
        self._watch()
        child.tasks.append(asyncio.create_task(self._read(child)))

    async def _read(self, child: _Child) -> None:
        try:
            while (frame := await receive_frame(child.reader)) is not None:
                if child.is_ready:
                    self._settle(self._questions.popleft(), self._decoder.decode(frame))
                child.is_ready = True
                self._watch()
        finally:
            child.writer.close()
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
            await self._bury(child)

    def _settle(self, question: _Question, answer: Rendered) -> None:
        if question.answer.done():
            return
        if answer.text is not None:
            question.answer.set_result(answer.text)
        else:
            question.answer.set_exception(RequestRejected(answer.error, param=answer.param))

    async def _bury(self, child: _Child) -> None:
        code = await child.process.wait()
        self._child = None
        self._watch()
        if self._is_stopped:
            return
        if self._questions:
            self._blame(self._questions[0], code)
        if self._questions:
            self._starting = asyncio.create_task(self._start())

    def _blame(self, question: _Question, code: int) -> None:
        """The question that the process was at when it ended."""
        question.num_deaths += 1
        is_slow = code == -signal.SIGPROF
        if not is_slow and question.num_deaths < 2:
            return
        logger.warning("the rendering process ended with %d; its question is given up", code)
        self._questions.popleft()
        reason = "takes too long" if is_slow else "is not possible within its limits"
        error = RequestRejected(f"rendering this chat {reason}", param="messages")
        if not question.answer.done():
            question.answer.set_exception(error)

    def _watch(self) -> None:
        """Begin the time of the first question, or of the process's own start."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        child = self._child
        if child is not None and (self._questions or not child.is_ready):
            seconds = self._limits.wall_seconds if child.is_ready else _BOOT_SECONDS
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(seconds, child.process.kill)

    def _fail_all(self, error: Exception) -> None:
        while self._questions:
            question = self._questions.popleft()
            if not question.answer.done():
                question.answer.set_exception(error)
