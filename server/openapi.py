"""Request bodies in the OpenAPI document; the routes read the bytes themselves."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from .schemas.body import RequestBody
from .schemas.file import PURPOSES


def body_reference(kind: type[RequestBody]) -> dict[str, Any]:
    """What a route says about its body, for ``openapi_extra``."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def upload_form(*required: str) -> dict[str, Any]:
    """The form of an adapter, for ``openapi_extra``."""
    texts = {name: {"type": "string"} for name in ("name", "activate")}
    files = {
        name: {"type": "string", "format": "binary", "description": text}
        for name, text in {
            "config": "adapter_config.json",
            "weights": "adapter_model.safetensors",
            "archive": "one .tar.gz or .zip of a PEFT folder, in place of config and weights",
        }.items()
    }
    return _form({**texts, **files}, required)


def file_form() -> dict[str, Any]:
    """The form of a file, for ``openapi_extra``."""
    expiry = {"anchor": {"const": "created_at"}, "seconds": {"type": "integer"}}
    fields = {
        "file": {"type": "string", "format": "binary", "description": "JSONL for fine-tuning"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after": {"type": "object", "properties": expiry},
    }
    return _form(fields, ("file", "purpose"))


def _form(fields: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": list(required)}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe_bodies(app: FastAPI, *kinds: type[RequestBody]) -> None:
    """Add the bodies' own schemas to the document."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
