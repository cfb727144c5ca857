"""The OpenAPI document: what FastAPI cannot see, as routes read and write the bytes themselves."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .access.rule import RULES
from .api_answer import ANSWERS, JSON, Answer
from .schemas.answer import Error
from .schemas.body import RequestBody
from .schemas.file import PURPOSES

_SCHEMAS: Final = "#/components/schemas/{model}"
_KEY: Final = "api_key"
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "if-match": {"type": "string", "description": "the version that is expected, or *"},
    "idempotency-key": {"type": "string", "minLength": 1, "maxLength": 255},
    "x-request-timeout-ms": {"type": "integer", "minimum": 1},
}
_SCOPES: Final = {key.replace(":path", ""): rule.scope for key, rule in RULES.items()}


def body_reference(kind: type[RequestBody]) -> dict[str, Any]:
    """What a route says about its body, for ``openapi_extra``."""
    schema = {"$ref": _SCHEMAS.format(model=kind.__name__)}
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


class DocumentedApp(FastAPI):
    """Writes its document when it is first asked for, which takes longer than all the rest."""

    bodies: Sequence[type[RequestBody]] = ()

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            describe(super().openapi(), self.bodies)
        assert self.openapi_schema is not None
        return self.openapi_schema


def describe(document: dict[str, Any], bodies: Sequence[type[RequestBody]]) -> None:
    """Complete a document: keys, schemas of ``bodies`` and answers, and what refuses a request.

    FastAPI's own 422 never happens.
    """
    kinds = {*bodies, Error, *(kind for answer in ANSWERS.values() for kind in _kinds(answer))}
    found, schemas = models_json_schema(
        [(kind, "validation") for kind in sorted(kinds, key=lambda kind: kind.__name__)],
        ref_template=_SCHEMAS,
    )
    references = {kind: reference for (kind, _), reference in found.items()}
    document["components"] = {
        "schemas": schemas["$defs"],
        "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe(operation, f"{method.upper()} {path}", references)


def _describe(operation: dict[str, Any], key: str, references: Mapping[Any, Any]) -> None:
    answer, scope = ANSWERS.get(key, Answer()), _SCOPES.get(key)
    operation["security"] = [] if scope is None else [{_KEY: [scope.value]}]
    if answer.headers:
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "header", "required": False, "schema": _HEADERS[name]}
            for name in answer.headers
        )
    schema = _one_of([references[kind] for kind in answer.kinds])
    refused = _one_of([references[kind] for kind in (Error, *answer.refusals)])
    success = {kind: {"schema": schema if kind == JSON else {}} for kind in answer.media_types}
    refusal = {JSON: {"schema": refused}}
    operation["responses"] = {
        **{
            str(status): {"description": "what was asked for", "content": success}
            for status in answer.statuses
        },
        "4XX": {"description": "refused, with the reason", "content": refusal},
        "5XX": {"description": "failed, or not now", "content": refusal},
    }


def _kinds(answer: Answer) -> tuple[type[BaseModel], ...]:
    return (*answer.kinds, *answer.refusals)


def _one_of(schemas: Sequence[Any]) -> dict[str, Any]:
    if not schemas:
        return {"type": "object"}
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
