"""``POST /v1/responses``: stateless."""

from functools import partial

from fastapi import APIRouter, Request, Response

from ..answering import answer
from ..openapi import body_reference
from ..prompting import tokenize_chat
from ..question import Question
from ..response_shape import ResponseShape, ResponseWriter
from ..schemas.body import parse_body
from ..schemas.response import ResponseBody
from ..service import service_of
from ..tool_use import tool_use

router = APIRouter()


@router.post("/v1/responses", openapi_extra=body_reference(ResponseBody))
async def create_response(request: Request) -> Response:
    """Answer an input; nothing is stored."""
    service = service_of(request)
    raw = await request.body()
    body = await service.text_work.run(len(raw), parse_body, raw, ResponseBody)
    chat = await service.text_work.run(len(raw), body.chat_body)
    tools = tool_use(service.tokenizer, chat)
    shape = ResponseShape(body, tools.reader if tools else None)
    question = Question(
        body=chat,
        shape=shape,
        tokenize=partial(
            tokenize_chat, service.text_work, service.tokenizer, chat, num_bytes=len(raw)
        ),
        is_chat=True,
        max_tokens=chat.max_completion_tokens,
        structure=tools.structure(service.tokenizer) if tools else None,
        keeps_special_tokens=tools is not None,
        make_writer=partial(ResponseWriter, shape),
        given=body,
    )
    return await answer(request, service, question)
