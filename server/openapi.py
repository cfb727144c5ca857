"""Request bodies in the OpenAPI document; the routes read the bytes themselves."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from .schemas.body import RequestBody


def body_reference(kind: type[RequestBody]) -> dict[str, Any]:
    """What a route says about its body, for ``openapi_extra``."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_bodies(app: FastAPI, *kinds: type[RequestBody]) -> None:
    """Add the bodies' own schemas to the document."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
