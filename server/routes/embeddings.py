"""``POST /v1/embeddings``."""

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.engine.errors import PromptTooLong
from multiflora.engine.request import EngineInfo, GenerationRequest, SamplingParams

from ..access.caller import caller_of
from ..admission import Order
from ..answering import version_headers
from ..catalog import ServedModel
from ..deadline import Deadline, timeout_of
from ..disconnect import until_disconnect
from ..embedding import Vector, embed, shortened, written
from ..ignored_field import check_body, ignored_header
from ..openapi import body_reference
from ..prompting import tokenize_prompts
from ..request_trail import leave_trail
from ..schemas.body import parse_body
from ..schemas.embedding import EmbeddingBody
from ..selection import lease_selected
from ..sequencing import check_number, check_prompt
from ..service import service_of

router = APIRouter()


@router.post("/v1/embeddings", openapi_extra=body_reference(EmbeddingBody))
async def create_embeddings(request: Request) -> Response:
    """The last hidden state of each input's last token, as a unit vector."""
    service = service_of(request)
    raw = await request.body()
    body = await service.text_work.run(len(raw), parse_body, raw, EmbeddingBody)
    check_body(body, is_strict=service.limits.refuses_unknown_fields)
    caller = caller_of(request)
    with (
        service.drain.running(),
        lease_selected(service.catalog, body, view=caller.view) as model,
        service.metrics.request(model.name, is_canary=model.is_canary) as record,
        ExitStack() as held,
    ):
        service.admission.check_room()
        seconds = timeout_of(request.headers, default=service.request_timeout_seconds)
        deadline = Deadline.after(seconds)
        info = service.client.info
        check_number(len(body.input), limit=service.limits.max_sequences, param="input")
        async with deadline.held():
            prompts = await service.text_work.run(
                len(raw),
                tokenize_prompts,
                service.tokenizer,
                body.input,
                max_model_len=info.max_model_len,
                last=body.truncate_prompt_tokens,
            )
        answer_id = f"embd-{uuid.uuid4().hex}"
        leave_trail(service, request, record, model, kind="list", answer_id=answer_id)
        requests = [
            replace(one, tenant=caller.tenant)
            for one in _requests(answer_id, body, prompts, model, info)
        ]
        num_tokens = sum(map(len, prompts))
        order = Order(
            caller=caller,
            adapter=model.name if model.parents else None,
            num_sequences=len(requests),
            num_prompt_tokens=num_tokens,
            num_tokens=num_tokens,
            timeout_seconds=deadline.remaining_seconds,
        )
        held.enter_context(service.admission.admitted(order))
        async with deadline.held():
            vectors = await until_disconnect(request, embed(service.client, requests))
        content = _content(body, model, prompts, vectors)
        record.ask([len(prompt) for prompt in prompts], num_choices=1)
        record.read_prompts()
        record.succeed()
    headers = {**version_headers(model), **ignored_header(body)}
    return Response(content, headers=headers, media_type="application/json")


def _requests(
    answer_id: str,
    body: EmbeddingBody,
    prompts: Sequence[Sequence[int]],
    model: ServedModel,
    info: EngineInfo,
) -> list[GenerationRequest]:
    for prompt in prompts:
        check_prompt(prompt, info, param="input")
        if len(prompt) > info.max_model_len:
            raise PromptTooLong(
                f"the context holds {info.max_model_len} tokens, but an input has {len(prompt)}",
                param="input",
            )
    return [
        GenerationRequest(
            id=f"{answer_id}-{place}",
            prompt=tuple(prompt),
            sampling=SamplingParams(max_tokens=0),
            adapters=model.shares(),
            cache_salt=body.cache_salt,
            priority=body.priority,
            wants_embedding=True,
        )
        for place, prompt in enumerate(prompts)
    ]


def _content(
    body: EmbeddingBody,
    model: ServedModel,
    prompts: Sequence[Sequence[int]],
    vectors: Sequence[Vector],
) -> bytes:
    as_base64 = body.encoding_format == "base64"
    short = [shortened(vector, body.dimensions) for vector in vectors]
    data = [
        {"object": "embedding", "index": place, "embedding": written(v, as_base64=as_base64)}
        for place, v in enumerate(short)
    ]
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return orjson.dumps({"object": "list", "data": data, "model": model.name, "usage": usage})
