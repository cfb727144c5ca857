"""``POST /v1/embeddings``."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from .completion import PROMPT_SCHEMA, Prompt, read_prompts
from .sampling import TargetBody


class EmbeddingBody(TargetBody):
    """Texts or tokens to be turned into vectors."""

    input: Annotated[
        tuple[Prompt, ...], PlainValidator(read_prompts), WithJsonSchema(PROMPT_SCHEMA)
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=2**31)
