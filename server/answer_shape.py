"""How completions and chat completions write the same answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from multiflora.engine.request import FinishReason
from multiflora.engine.text.token_bytes import TokenBytes, num_characters
from multiflora.engine.text.tokenizer import Tokenizer
from multiflora.engine.text.tool_calls.call import CallDelta, CallReader, Reading

from .generation import Delta
from .logprobs import chat_logprobs, completion_logprobs
from .schemas.sampling import SamplingBody


class AnswerShape(Protocol):
    """The JSON of one answer; the same object writes all of its choices."""

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

    def fields(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What a whole answer and the first chunk say beside choices."""
        ...

    def choice(self, whole: Delta) -> dict[str, Any]:
        """A finished choice; all its deltas are joined in ``whole``."""
        ...

    def document(
        self,
        envelope: Mapping[str, Any],
        choices: Sequence[Mapping[str, Any]],
        usage: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The whole answer."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What is streamed before a choice's first text, if anything."""
        ...

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """A streamed piece of a choice; None for one that says nothing."""
        ...


@dataclass(slots=True, kw_only=True)
class TokenDetail:
    """What an answer says of its tokens beside their text."""

    names: TokenBytes
    logprobs: bool = False
    token_ids: bool = False
    # Ids that take no room in the text.
    silent: frozenset[int] = frozenset()


def token_detail(tokenizer: Tokenizer, body: SamplingBody) -> TokenDetail:
    """What ``body`` asks for."""
    return TokenDetail(
        names=tokenizer.token_bytes,
        logprobs=body.num_logprobs is not None,
        token_ids=body.return_token_ids,
        silent=tokenizer.special_ids if body.skip_special_tokens else frozenset(),
    )


class _Document:
    """Both kinds of completions list their choices in the same way."""

    __slots__ = ()

    def document(
        self,
        envelope: Mapping[str, Any],
        choices: Sequence[Mapping[str, Any]],
        usage: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {**envelope, "choices": choices, "usage": usage}


@dataclass(slots=True)
class CompletionShape(_Document):
    """``text_completion`` objects; their chunks look like the whole."""

    detail: TokenDetail
    prompts: Sequence[Sequence[int]] = ()
    num_choices: int = 1
    id_prefix: str = "cmpl"
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    # Characters of each choice so far.
    _offsets: dict[int, int] = field(default_factory=dict)

    def fields(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        self.prompts = prompts
        return {}

    def choice(self, whole: Delta) -> dict[str, Any]:
        return self._piece(whole)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        is_silent = not (delta.text or delta.finish_reason or delta.echo)
        if is_silent and not (delta.tokens and (self.detail.logprobs or self.detail.token_ids)):
            return None
        return self._piece(delta)

    def _piece(self, delta: Delta) -> dict[str, Any]:
        piece = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta) if self.detail.logprobs else None,
            "finish_reason": delta.finish_reason,
        }
        if self.detail.token_ids:
            piece["token_ids"] = delta.tokens
            if delta.num_tokens == len(delta.tokens):
                piece["prompt_token_ids"] = self.prompts[delta.index // self.num_choices]
        return piece

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        tokens, scores = delta.tokens, tuple(delta.scores)
        if delta.echo:
            tokens, scores = delta.echo.tokens + tokens, delta.echo.scores + scores
        offset = self._offsets.get(delta.index, 0)
        loud = (token for token in tokens if token not in self.detail.silent)
        names = self.detail.names
        self._offsets[delta.index] = offset + sum(num_characters(names[token]) for token in loud)
        return completion_logprobs(names, tokens, scores, offset=offset, silent=self.detail.silent)


@dataclass(slots=True)
class ChatShape(_Document):
    """``chat.completion`` objects; the first chunk of a choice carries the role."""

    detail: TokenDetail
    # For answers that may call tools.
    make_reader: Callable[[], CallReader] | None = None
    id_prefix: str = "chatcmpl"
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"
    _readers: dict[int, CallReader] = field(default_factory=dict)
    _callers: set[int] = field(default_factory=set)

    def fields(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {"prompt_token_ids": prompts[0]} if self.detail.token_ids else {}

    def choice(self, whole: Delta) -> dict[str, Any]:
        reading = self._read(whole)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": reading.content,
            "refusal": None,
        }
        if reading.calls:
            message["content"] = reading.content or None
            message["tool_calls"] = _whole_calls(reading.calls)
        return self._detailed({"index": whole.index, "message": message}, whole)

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        reading = self._read(delta)
        content: dict[str, Any] = {"content": reading.content} if reading.content else {}
        if reading.calls:
            content["tool_calls"] = [_streamed_call(call) for call in reading.calls]
        has_detail = delta.tokens and (self.detail.logprobs or self.detail.token_ids)
        if not (content or delta.finish_reason or has_detail):
            return None
        return self._detailed({"index": delta.index, "delta": content}, delta)

    def _read(self, delta: Delta) -> Reading:
        """Tell calls from content."""
        if self.make_reader is None:
            return Reading(delta.text)
        if delta.index not in self._readers:
            self._readers[delta.index] = self.make_reader()
        reader = self._readers[delta.index]
        reading = reader.push(delta.text)
        if delta.finish_reason is not None:
            rest = reader.finish()
            reading = Reading(reading.content + rest.content, reading.calls + rest.calls)
        if reading.calls:
            self._callers.add(delta.index)
        return reading

    def _detailed(self, choice: dict[str, Any], delta: Delta) -> dict[str, Any]:
        detail = self.detail
        choice["logprobs"] = (
            chat_logprobs(detail.names, delta.tokens, delta.scores) if detail.logprobs else None
        )
        is_call = delta.index in self._callers and delta.finish_reason is FinishReason.STOP
        choice["finish_reason"] = "tool_calls" if is_call else delta.finish_reason
        if detail.token_ids:
            choice["token_ids"] = delta.tokens
        return choice


def _whole_calls(deltas: Sequence[CallDelta]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        call = calls.setdefault(
            delta.index,
            {
                "id": delta.id,
                "type": "function",
                "function": {"name": delta.name, "arguments": ""},
            },
        )
        call["function"]["arguments"] += delta.arguments
    return list(calls.values())


def _streamed_call(delta: CallDelta) -> dict[str, Any]:
    if delta.id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }
