"""What bytes of a stranger reach: each target takes any bytes and raises only where we are wrong.

The same targets serve hypothesis and atheris.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer, models

from multiflora.engine.errors import RequestRejected
from multiflora.engine.request import FinishReason
from multiflora.engine.text.chat_template import ChatTemplate
from multiflora.engine.text.quotation import Quotation
from multiflora.engine.text.token_bytes import TokenBytes
from multiflora.server.answer_shape import AnswerShape, ChatShape, CompletionShape, TokenDetail
from multiflora.server.generation import Delta
from multiflora.server.schemas.adapter import CanaryBody, ImportBody, RollbackBody
from multiflora.server.schemas.batch import BatchBody
from multiflora.server.schemas.body import RequestBody, parse_body
from multiflora.server.schemas.chat import ChatBody
from multiflora.server.schemas.completion import CompletionBody
from multiflora.server.schemas.dataset_sampling import SampleBody
from multiflora.server.schemas.embedding import EmbeddingBody
from multiflora.server.schemas.feedback import FeedbackBody
from multiflora.server.schemas.fine_tuning import JobBody
from multiflora.server.schemas.key import KeyBody
from multiflora.server.schemas.learning import LearningBody
from multiflora.server.schemas.merge import MergeBody
from multiflora.server.schemas.response import ResponseBody
from multiflora.server.schemas.sampling import StreamOptions
from multiflora.server.schemas.tokenizing import DetokenizeBody, TokenizeBody
from multiflora.server.streaming import ChunkWriter
from multiflora.server.usage import UsageCount

# A body of each kind that is fine, to be changed from there.
GOOD_BODIES: Final[Mapping[type[RequestBody], dict[str, Any]]] = {
    ChatBody: {"model": "base", "messages": [{"role": "user", "content": "hi"}]},
    CompletionBody: {"model": "base", "prompt": "hi"},
    EmbeddingBody: {"model": "base", "input": ["hi", "there"]},
    ResponseBody: {"model": "base", "input": [{"role": "user", "content": "hi"}]},
    TokenizeBody: {"messages": [{"role": "user", "content": "hi"}]},
    DetokenizeBody: {"tokens": [1, 2]},
    JobBody: {"model": "base", "training_file": "file-1"},
    BatchBody: {
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
    RollbackBody: {"version": "0" * 64},
    CanaryBody: {"version": "0" * 64, "weight": 0.5},
    ImportBody: {"path": "adapter"},
    MergeBody: {"name": "new", "sources": [{"adapter": "a"}, {"adapter": "b"}]},
    FeedbackBody: {"completion_id": "cmpl-1", "rating": "up"},
    LearningBody: {"enabled": True, "canary": {"min_requests": 9}},
    SampleBody: {
        "model": "base",
        "prompts": [{"prompt": "hi", "expected": "there"}],
        "grader": {"type": "exact"},
    },
    KeyBody: {"name": "new", "scopes": ["inference"]},
}
_KINDS: Final = tuple(GOOD_BODIES)
_TEMPLATE: Final = ChatTemplate(
    {
        "default": "{% for message in messages %}<|{{ message.role }}|>"
        "{{ message.content | trim }}{% for call in message.tool_calls or [] %}"
        "{{ call.function.name + call.function.arguments | tojson }}{% endfor %}</s>"
        "{% endfor %}{{ tools | tojson if tools }}{{ style }}"
    },
    special_tokens={"eos_token": "</s>"},
    max_chars=100_000,
)


def body_target(data: bytes) -> None:
    """The first byte chooses the kind, the others are the body of the request."""
    if data:
        with_body(_KINDS[data[0] % len(_KINDS)], data[1:])


def with_body(kind: type[RequestBody], raw: bytes) -> RequestBody | None:
    """Parse and do what routes do before they ask the engine; None for what is refused."""
    try:
        body = parse_body(raw, kind)
        _use(body)
    except RequestRejected as error:
        refusal = error
    else:
        return body
    # An answer can be written, and is no larger than it should be.
    assert len(json.dumps([str(refusal), refusal.param])) < 20_000
    return None


def _use(body: RequestBody) -> None:
    match body:
        case TokenizeBody() if body.messages:
            _use(body.conversation(body.messages))
        case ResponseBody():
            _use(body.chat_body())
        case ChatBody() | CompletionBody():
            body.sampling_params()
            assert len(set(body.seeds())) == body.n
            if structure := body.structure():
                structure.build()
        case JobBody():
            body.wish(seed=0)
        case MergeBody():
            body.recipe()
        case LearningBody():
            body.policy()
        case SampleBody():
            body.check()
        case KeyBody():
            _refused_by_value_error(body.wish)
        case _:
            pass
    if isinstance(body, ChatBody):
        [message.for_template() for message in body.messages]


def _refused_by_value_error(make: Callable[[], object]) -> None:
    try:
        make()
    except ValueError as error:
        raise RequestRejected(str(error)) from None


def template_target(data: bytes) -> None:
    """A chat body is rendered: a text, or a refusal; nobody's text becomes a special token."""
    body = with_body(ChatBody, data)
    if not isinstance(body, ChatBody):
        return
    quotation = Quotation(["</s>", "<|user|>", "<|assistant|>"])
    try:
        text = _TEMPLATE.render(
            [quotation.quote(message.for_template()) for message in body.messages],
            tools=quotation.quote([tool.model_dump() for tool in body.tools]),
            extra=quotation.quote(body.chat_template_kwargs),
        )
    except RequestRejected:
        return
    own = "".join(piece for piece, is_quoted in quotation.split(text) if not is_quoted)
    assert own.count("</s>") == len(body.messages)
    assert own.count("<|user|>") == sum(message.role == "user" for message in body.messages)


def stream_target(data: bytes) -> None:
    """An answer is cut anywhere; what a reader of events puts together again is the answer."""
    is_chat, sizes = bool(data[:1] > b"\x7f"), [byte % 7 for byte in data[1:9]] or [1]
    text = data[9:].decode(errors="replace")
    pieces = list(_pieces(text, sizes))
    content = asyncio.run(_streamed(ChatShape if is_chat else CompletionShape, pieces))

    assert b"\r" not in content
    *events, end, rest = content.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: ") and event.count(b"\n") == 0 for event in events)
    chunks = [json.loads(event[6:]) for event in events]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(pieces)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    said = [c["delta"].get("content", "") if is_chat else c["text"] for c in choices]
    assert "".join(said) == text
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]


def _pieces(text: str, sizes: Sequence[int]) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        # Some steps say nothing, but not all of them.
        size = size if any(sizes) else 1
        pieces.append(text[start : start + size])
        start += size
    return pieces or [""]


async def _streamed(kind: type[ChatShape] | type[CompletionShape], pieces: Sequence[str]) -> bytes:
    shape: AnswerShape = kind(TokenDetail(names=TokenBytes(Tokenizer(models.BPE()))))
    writer = ChunkWriter(
        envelope={"id": "1", "object": shape.chunk_kind},
        opening=shape.fields([[1]]),
        shape=shape,
        options=StreamOptions(include_usage=True),
        usage=UsageCount([1], num_choices=1),
        record=_Record(),  # type: ignore[arg-type]
    )
    deltas = [
        Delta(
            index=0,
            text=piece,
            num_tokens=place + 1,
            cached_tokens=0,
            finish_reason=FinishReason.STOP if place == len(pieces) - 1 else None,
        )
        for place, piece in enumerate(pieces)
    ]
    first, *rest = deltas
    return b"".join([events async for events in writer.events(first, _each(rest))])


async def _each(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


class _Record:
    """In place of the metrics."""

    def succeed(self) -> None: ...

    def fail(self, error: Exception) -> None:
        raise error


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "body": body_target,
    "template": template_target,
    "stream": stream_target,
}
