"""``POST /v1/datasets/sample``: what to ask, how often, and what passes."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.sampling.grader import (
    ExactMatch,
    Grader,
    PatternMatch,
    compile_pattern,
    compile_schema,
)
from multiflora.engine.training.sampling.prompt_row import MAX_PROMPTS

from ..background_job import BackgroundJob
from .body import RequestBody
from .chat import ChatMessage

KIND: Final = "sampling"
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_MAX_CHARS = 4096


class PromptBody(BaseModel):
    """A conversation or a text, and the answer that is expected to it."""

    model_config = _STRICT

    messages: list[ChatMessage] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)
    expected: str | None = None


class ExactBody(BaseModel):
    """Equal to the expected answer; ``extract`` is a pattern whose first group is compared."""

    model_config = _STRICT

    type: Literal["exact"]
    extract: str | None = None
    ignore_case: bool = False

    def grader(self) -> Grader:
        pattern = None
        if self.extract is not None:
            pattern = compile_pattern(self.extract, "grader.extract")
        return ExactMatch(pattern, self.ignore_case)


class RegexBody(BaseModel):
    """The pattern occurs in the answer."""

    model_config = _STRICT

    type: Literal["regex"]
    pattern: str

    def grader(self) -> Grader:
        return PatternMatch(compile_pattern(self.pattern, "grader.pattern"))


class JsonSchemaBody(BaseModel):
    """The answer is JSON that the schema accepts."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")

    def grader(self) -> Grader:
        return compile_schema(self.json_schema, "grader.schema")


class JudgeBody(BaseModel):
    """Another name answers ``question`` with yes; {prompt}, {answer} and {expected} are filled."""

    model_config = _STRICT

    type: Literal["judge"]
    model: str = Field(max_length=200)
    question: str = Field(min_length=1, max_length=_MAX_CHARS)


GraderBody = Annotated[
    ExactBody | RegexBody | JsonSchemaBody | JudgeBody, Field(discriminator="type")
]


class SampleBody(RequestBody):
    """Either ``prompts`` or ``prompts_file``, a stored training file whose answers are expected.

    ``keep`` passing answers per prompt become rows, equal ones once.
    """

    model: str = Field(max_length=200)
    prompts: list[PromptBody] | None = Field(None, min_length=1, max_length=MAX_PROMPTS)
    prompts_file: str | None = Field(None, max_length=100)
    grader: GraderBody
    n: int = Field(8, ge=1, le=64)
    keep: int = Field(4, ge=1, le=64)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int = Field(256, ge=1, lt=2**31)
    seed: int = Field(0, ge=0, lt=2**31)
    background: bool = False

    def check(self) -> None:
        """Raises ``RequestRejected`` for what pydantic cannot see."""
        if (self.prompts is None) == (self.prompts_file is None):
            raise RequestRejected("give prompts or prompts_file, and only one", param="prompts")
        for place, one in enumerate(self.prompts or ()):
            if (one.messages is None) == (one.prompt is None):
                raise RequestRejected(
                    "give messages or prompt, and only one", param=f"prompts.{place}"
                )
            if isinstance(self.grader, ExactBody) and not one.expected:
                raise RequestRejected(
                    "an exact match needs the expected answer", param=f"prompts.{place}.expected"
                )


def sampling_object(job: BackgroundJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "dataset.sampling",
        "model": job.name,
        "status": job.status,
        "progress": job.progress,
        "created_at": job.created,
        "error": job.error,
        "report": job.result,
    }
