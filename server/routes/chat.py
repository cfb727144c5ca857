"""``POST /v1/chat/completions``."""

from functools import partial

from fastapi import APIRouter, Request, Response

from ..answer_shape import ChatShape
from ..answering import Question, answer
from ..openapi import body_reference
from ..prompting import tokenize_chat
from ..schemas.body import parse_body
from ..schemas.chat import ChatBody
from ..service import off_loop, service_of

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=body_reference(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    raw = await request.body()
    is_large = len(raw) > service.limits.inline_body_bytes
    body = await off_loop(is_large, parse_body, raw, ChatBody)
    question = Question(
        body=body,
        shape=ChatShape(),
        tokenize=partial(
            tokenize_chat, service.tokenizer, service.chat_template, body, is_large=is_large
        ),
        max_tokens=body.max_completion_tokens or body.max_tokens,
    )
    return await answer(request, service, question)
