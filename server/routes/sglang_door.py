"""SGLang's routes to load and unload adapters: success and failure in one shape."""

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.adapters.error import AdapterRejected, InvalidName, UnknownName

from ..access.caller import caller_of
from ..errors import NameTaken
from ..path_door import DoorClosed, publish_path
from ..removal import remove_adapter
from ..service import Service, service_of
from .vllm_door import read_fields

router = APIRouter()


@router.post("/load_lora_adapter")
async def load_lora_adapter(request: Request) -> Response:
    """Publish ``lora_path`` as ``lora_name``, and pin it if ``pinned``."""
    service = service_of(request)
    fields = await read_fields(request)
    name, path = fields.get("lora_name"), fields.get("lora_path")
    if not isinstance(name, str) or not isinstance(path, str):
        return _answer(service, "lora_name and lora_path must be provided.")
    try:
        await publish_path(service, name, path, in_place=False, caller=caller_of(request))
        if fields.get("pinned") is True:
            await service.pinning.pin(name)
    except NameTaken:
        return _answer(service, f"LoRA adapter {name!r} is already loaded; unload it first.")
    except (AdapterRejected, InvalidName, DoorClosed) as error:
        return _answer(service, str(error))
    return _answer(service)


@router.post("/unload_lora_adapter")
async def unload_lora_adapter(request: Request) -> Response:
    """Forget ``lora_name``; running requests finish."""
    service = service_of(request)
    name = (await read_fields(request)).get("lora_name")
    if not isinstance(name, str):
        return _answer(service, "lora_name must be provided.")
    if service.adapters_root is None:
        return _answer(service, str(DoorClosed()))
    try:
        await remove_adapter(service, name)
    except UnknownName:
        return _answer(service, f"LoRA adapter {name!r} is not loaded.")
    return _answer(service)


def _answer(service: Service, error: str = "") -> Response:
    """``loaded_adapters`` maps names to versions: the server's paths are not for clients."""
    content = {
        "success": not error,
        "error_message": error,
        "loaded_adapters": {entry.name: entry.digest for entry in service.registry.entries()},
    }
    return Response(
        orjson.dumps(content), status_code=400 if error else 200, media_type="application/json"
    )
