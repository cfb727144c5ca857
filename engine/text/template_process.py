"""Chat templates in a process of their own: a program in a file that came with a model.

Run by `TemplateRenderer`. The sandbox keeps a template from this process's objects, the limits keep
it from the machine: it cannot write, fork or open more than a few files, a render that takes more
memory fails, and one that takes more CPU time ends the process.
"""

import signal
import socket
from functools import lru_cache
from typing import Any, Final

import msgspec

from multiflora.adapters.resource_limit import restrict_resources

from ..errors import InvalidCheckpoint, RequestRejected
from ..frame import read_frame, write_frame
from .chat_template import ChatTemplate

_MAX_KEPT: Final = 32


class Setup(msgspec.Struct, frozen=True):
    """The first message. ``memory_bytes`` is address space, ``cpu_seconds`` of one render."""

    templates: dict[str, str]
    special_tokens: dict[str, str]
    max_chars: int
    memory_bytes: int
    cpu_seconds: float


class Render(msgspec.Struct, frozen=True):
    """``fields`` are the arguments of ``ChatTemplate.render``; ``template`` replaces the base's."""

    fields: dict[str, Any]
    template: str = ""


class Rendered(msgspec.Struct, frozen=True):
    """The answer to the oldest ``Render`` that has none yet; ``text`` None: it was refused."""

    text: str | None = None
    error: str = ""
    param: str | None = None


def main(descriptor: int) -> None:
    """Answer in the order of the questions, until the other end is closed."""
    connection = socket.socket(fileno=descriptor)
    setup = msgspec.msgpack.decode(read_frame(connection) or b"", type=Setup)
    templates = _Templates(setup)
    restrict_resources(memory_bytes=setup.memory_bytes, file_bytes=0)
    # An empty frame says that the limits hold and the first question can come.
    write_frame(connection, b"")
    decoder, encoder = msgspec.msgpack.Decoder(Render), msgspec.msgpack.Encoder()
    while frame := read_frame(connection):
        # Above the limit comes SIGPROF, whose default is the end, in the middle of any C code.
        signal.setitimer(signal.ITIMER_PROF, setup.cpu_seconds)
        answer = encoder.encode(_render(templates, decoder.decode(frame)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(connection, answer)


class _Templates:
    """The base's, and the last ones that adapters brought, compiled."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._base = self._compiled(setup.templates)
        self._others = lru_cache(_MAX_KEPT)(lambda source: self._compiled({"default": source}))

    def of(self, question: Render) -> ChatTemplate:
        """Raises ``InvalidCheckpoint`` for a source that is none."""
        return self._others(question.template) if question.template else self._base

    def _compiled(self, sources: dict[str, str]) -> ChatTemplate:
        setup = self._setup
        return ChatTemplate(sources, special_tokens=setup.special_tokens, max_chars=setup.max_chars)


def _render(templates: _Templates, question: Render) -> Rendered:
    try:
        return Rendered(templates.of(question).render(**question.fields))
    except InvalidCheckpoint as error:
        return Rendered(error=str(error), param="model")
    except RequestRejected as error:
        return Rendered(error=str(error), param=error.param)
    except RecursionError:
        return Rendered(error="the messages are nested too deeply", param="messages")
    except MemoryError:
        return Rendered(error="rendering the chat needs too much memory", param="messages")
