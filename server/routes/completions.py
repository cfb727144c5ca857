"""``POST /v1/completions``."""

from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response

from ..answer_shape import CompletionShape
from ..answering import Question, answer
from ..openapi import body_reference
from ..prompting import tokenize_prompts
from ..schemas.body import parse_body
from ..schemas.completion import CompletionBody
from ..service import off_loop, service_of

router = APIRouter()
_DEFAULT_MAX_TOKENS: Final = 16


@router.post("/v1/completions", openapi_extra=body_reference(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Continue text or tokens; token ids are used as given, no BOS is added."""
    service = service_of(request)
    raw = await request.body()
    is_large = len(raw) > service.limits.inline_body_bytes
    body = await off_loop(is_large, parse_body, raw, CompletionBody)
    question = Question(
        body=body,
        shape=CompletionShape(),
        tokenize=partial(tokenize_prompts, service.tokenizer, body.prompt, is_large=is_large),
        max_tokens=body.max_tokens,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
    )
    return await answer(request, service, question)
