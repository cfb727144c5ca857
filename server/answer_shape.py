"""How completions and chat completions write the same answer."""

from dataclasses import dataclass
from typing import Any, Protocol


class AnswerShape(Protocol):
    """The JSON of one kind of answer; ``reason`` is None while a choice is not finished."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def kind(self) -> str:
        """The ``object`` of a whole answer."""
        ...

    @property
    def chunk_kind(self) -> str:
        """The ``object`` of a streamed piece."""
        ...

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]: ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What is streamed before a choice's first text, if anything."""
        ...

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """``text_completion`` objects; their chunks look like the whole."""

    id_prefix: str = "cmpl"
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        return self.delta(index, text, reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


@dataclass(frozen=True, slots=True)
class ChatShape:
    """``chat.completion`` objects; the first chunk of a choice carries the role."""

    id_prefix: str = "chatcmpl"
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return self._chunk(index, {"content": text} if text else {}, reason)

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
