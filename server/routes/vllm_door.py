"""vLLM's routes to load and unload adapters, with its status codes, texts and error shape.

Status codes and messages are those of vLLM 0.11's ``OpenAIServingModels``, where error codes are
numbers; operators and trainers match on them.
"""

from typing import Any, TypeGuard

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from multiflora.adapters.error import AdapterRejected, InvalidName, UnknownName

from ..access.caller import caller_of
from ..errors import NameTaken
from ..path_door import DoorClosed, publish_path
from ..removal import remove_adapter
from ..service import service_of

router = APIRouter()


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(request: Request) -> Response:
    """Publish ``lora_path`` as ``lora_name``; with ``load_inplace`` the name may exist."""
    fields = await read_fields(request)
    name, path = fields.get("lora_name"), fields.get("lora_path")
    if not _is_text(name) or not _is_text(path):
        return _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
    try:
        await publish_path(
            service_of(request),
            name,
            path,
            in_place=fields.get("load_inplace") is True,
            caller=caller_of(request),
        )
    except NameTaken:
        return _error(400, "InvalidUserInput", duplicate_text(name))
    except DoorClosed as error:
        return _error(404, "NotFoundError", str(error))
    except (AdapterRejected, InvalidName) as error:
        if error.code == "not_found":
            return _error(404, "NotFoundError", str(error))
        return _error(400, "BadRequestError", str(error))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(request: Request) -> Response:
    """Forget ``lora_name``; running requests finish."""
    service = service_of(request)
    name = (await read_fields(request)).get("lora_name")
    if not _is_text(name):
        text = "'lora_name' needs to be provided to unload a LoRA adapter."
        return _error(400, "InvalidUserInput", text)
    if service.adapters_root is None:
        return _error(404, "NotFoundError", str(DoorClosed()))
    try:
        await remove_adapter(service, name)
    except UnknownName:
        return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def read_fields(request: Request) -> dict[str, Any]:
    """The fields of a JSON object; none for any other body. Unknown ones are left alone."""
    try:
        fields = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def duplicate_text(name: str) -> str:
    return (
        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
        "place, set 'load_inplace' to True."
    )


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)


def _error(status: int, kind: str, message: str) -> Response:
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")
