"""``POST /v1/chat/completions``."""

from functools import partial

from fastapi import APIRouter, Request, Response

from ..answer_shape import ChatShape, token_detail
from ..answering import answer
from ..openapi import body_reference
from ..prompting import tokenize_chat
from ..question import Question
from ..schemas.body import parse_body
from ..schemas.chat import ChatBody
from ..service import service_of
from ..tool_use import tool_use

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=body_reference(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    raw = await request.body()
    body = await service.text_work.run(len(raw), parse_body, raw, ChatBody)
    tools = tool_use(service.tokenizer, body)
    question = Question(
        body=body,
        shape=ChatShape(
            token_detail(service.tokenizer, body), make_reader=tools.reader if tools else None
        ),
        tokenize=partial(
            tokenize_chat, service.text_work, service.tokenizer, body, num_bytes=len(raw)
        ),
        is_chat=True,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        structure=tools.structure(service.tokenizer) if tools else None,
        keeps_special_tokens=tools is not None,
        echo=(lambda place, tokens: body.begun) if body.echo else None,
    )
    return await answer(request, service, question)
