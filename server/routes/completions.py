"""``POST /v1/completions``."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response

from multiflora.engine.text.tokenizer import Tokenizer

from ..answer_shape import CompletionShape, token_detail
from ..answering import answer
from ..openapi import body_reference
from ..prompting import tokenize_prompts
from ..question import Question
from ..schemas.body import parse_body
from ..schemas.completion import CompletionBody
from ..service import service_of

router = APIRouter()
_DEFAULT_MAX_TOKENS: Final = 16


@router.post("/v1/completions", openapi_extra=body_reference(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Continue text or tokens; token ids are used as given, no BOS is added."""
    service = service_of(request)
    raw = await request.body()
    body = await service.text_work.run(len(raw), parse_body, raw, CompletionBody)
    question = Question(
        body=body,
        shape=CompletionShape(token_detail(service.tokenizer, body), num_choices=body.n),
        tokenize=partial(
            service.text_work.run,
            len(raw),
            tokenize_prompts,
            service.tokenizer,
            body.prompt,
            last=body.truncate_prompt_tokens,
        ),
        max_tokens=body.max_tokens,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        echo=partial(_echo, service.tokenizer, body) if body.echo else None,
    )
    return await answer(request, service, question)


def _echo(tokenizer: Tokenizer, body: CompletionBody, place: int, tokens: Sequence[int]) -> str:
    """The prompt as it was written, or what is left of it."""
    prompt = body.prompt[place]
    if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
        return prompt
    return tokenizer.decode(tokens, skip_special_tokens=body.skip_special_tokens)
