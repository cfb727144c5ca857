"""``/tokenize``, ``/detokenize``, ``/tokenizer_info``: the base's tokenizer, as vLLM shows it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.template_renderer import Renderer

from ..access.caller import caller_of
from ..catalog import ServedModel
from ..ignored_field import check_body, ignored_header
from ..openapi import body_reference
from ..prompting import tokenize_chat
from ..schemas.body import parse_body
from ..schemas.tokenizing import MOST_CHARS, DetokenizeBody, TokenizeBody
from ..sequencing import check_tokens
from ..service import Service, service_of

router = APIRouter()


@router.post("/tokenize", openapi_extra=body_reference(TokenizeBody))
async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a rendered conversation."""
    service, raw = service_of(request), await request.body()
    with _admitted(request, service):
        body = await service.text_work.run(len(raw), parse_body, raw, TokenizeBody)
        check_body(body, is_strict=service.limits.refuses_unknown_fields)
        with _model(request, body.model) as model:
            tokens = await _tokens(service, body, service.renderer(model), num_bytes=len(raw))
        content = await service.text_work.run(len(raw), _content, service, body, tokens)
    return Response(content, headers=ignored_header(body), media_type="application/json")


@router.post("/detokenize", openapi_extra=body_reference(DetokenizeBody))
async def detokenize(request: Request) -> Response:
    """The text of tokens, special ones included."""
    service, raw = service_of(request), await request.body()
    with _admitted(request, service):
        body = await service.text_work.run(len(raw), parse_body, raw, DetokenizeBody)
        check_body(body, is_strict=service.limits.refuses_unknown_fields)
        with _model(request, body.model):
            pass
        content = await service.text_work.run(len(raw), _decoded, service, body)
    return Response(content, headers=ignored_header(body), media_type="application/json")


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What evaluation harnesses need instead of a tokenizer of their own."""
    service = service_of(request)
    folder = service.tokenizer.folder
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": service.tokenizer.vocab_size,
        "model_max_length": service.client.info.max_model_len,
        "chat_template": folder.chat_templates.get("default"),
        **{name: token.content for name, token in folder.special_tokens.items()},
    }


def _model(request: Request, model: str | None) -> AbstractContextManager[ServedModel]:
    """All models share the base's tokenizer, but an unknown one is an error."""
    catalog = service_of(request).catalog
    return catalog.lease(model or catalog.base, view=caller_of(request).view)


@contextmanager
def _admitted(request: Request, service: Service) -> Iterator[None]:
    """Hold while texts are worked on; raises as inference does, but for the engine's queue."""
    with service.drain.running(), service.admission.counted(caller_of(request)):
        yield


async def _tokens(
    service: Service, body: TokenizeBody, renderer: Renderer, *, num_bytes: int
) -> Sequence[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestRejected("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        return await service.text_work.run(
            num_bytes,
            service.tokenizer.encode,
            body.prompt,
            add_special_tokens=body.add_special_tokens,
        )
    assert body.messages is not None
    (tokens,) = await tokenize_chat(
        service.text_work,
        service.tokenizer,
        body.conversation(body.messages),
        renderer=renderer,
        num_bytes=num_bytes,
        max_chars=MOST_CHARS,
    )
    return tokens


def _content(service: Service, body: TokenizeBody, tokens: Sequence[int]) -> bytes:
    name = service.tokenizer.token_name
    return orjson.dumps(
        {
            "count": len(tokens),
            "max_model_len": service.client.info.max_model_len,
            "tokens": tokens,
            "token_strs": [*map(name, tokens)] if body.return_token_strs else None,
        }
    )


def _decoded(service: Service, body: DetokenizeBody) -> bytes:
    check_tokens(body.tokens, service.client.info.vocab_size, param="tokens")
    text = service.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return orjson.dumps({"prompt": text})
