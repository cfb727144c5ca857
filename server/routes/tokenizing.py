"""``/tokenize``, ``/detokenize``, ``/tokenizer_info``: the base's tokenizer, as vLLM shows it."""

import sys
from contextlib import AbstractContextManager
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
from ..schemas.tokenizing import DetokenizeBody, TokenizeBody
from ..sequencing import check_tokens
from ..service import Service, off_loop, service_of

router = APIRouter()


@router.post("/tokenize", openapi_extra=body_reference(TokenizeBody))
async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a rendered conversation."""
    service = service_of(request)
    raw = await request.body()
    is_large = len(raw) > service.limits.inline_body_bytes
    body = await off_loop(is_large, parse_body, raw, TokenizeBody)
    check_body(body, is_strict=service.limits.refuses_unknown_fields)
    with _model(request, body.model) as model:
        tokens = await _tokens(service, body, service.renderer(model), is_large)
    content: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": service.client.info.max_model_len,
        "tokens": tokens,
        "token_strs": None,
    }
    if body.return_token_strs:
        content["token_strs"] = [service.tokenizer.token_name(token) for token in tokens]
    return Response(
        orjson.dumps(content), headers=ignored_header(body), media_type="application/json"
    )


@router.post("/detokenize", openapi_extra=body_reference(DetokenizeBody))
async def detokenize(request: Request) -> Response:
    """The text of tokens, special ones included."""
    service = service_of(request)
    raw = await request.body()
    is_large = len(raw) > service.limits.inline_body_bytes
    body = await off_loop(is_large, parse_body, raw, DetokenizeBody)
    check_body(body, is_strict=service.limits.refuses_unknown_fields)
    with _model(request, body.model):
        pass
    check_tokens(body.tokens, service.client.info.vocab_size, param="tokens")
    decode = service.tokenizer.decode
    text = await off_loop(is_large, decode, body.tokens, skip_special_tokens=False)
    content = orjson.dumps({"prompt": text})
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


async def _tokens(
    service: Service, body: TokenizeBody, renderer: Renderer, is_large: bool
) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestRejected("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        encode = service.tokenizer.encode
        return await off_loop(
            is_large, encode, body.prompt, add_special_tokens=body.add_special_tokens
        )
    assert body.messages is not None
    conversation = body.conversation(body.messages)
    (tokens,) = await tokenize_chat(
        service.tokenizer,
        conversation,
        renderer=renderer,
        max_model_len=sys.maxsize,
        is_large=is_large,
    )
    return list(tokens)
