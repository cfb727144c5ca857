"""``/v1/feedback``: what users say about answers, and how it is shown."""

from typing import Any, Literal

from pydantic import Field, model_validator

from multiflora.engine.training.feedback.completion import Feedback, Kind

from .body import RequestBody

_MAX_CHARS = 1 << 20


class FeedbackBody(RequestBody):
    """One of ``rating``, ``edit`` and ``preferred``, on choice ``choice`` of an answer."""

    completion_id: str = Field(min_length=1, max_length=100)
    choice: int = Field(0, ge=0, lt=1 << 16)
    rating: Literal["up", "down"] | None = None
    edit: str | None = Field(None, max_length=_MAX_CHARS)
    preferred: str | None = Field(None, max_length=_MAX_CHARS)

    @model_validator(mode="after")
    def _says_one_thing(self) -> "FeedbackBody":
        given = [value for value in (self.rating, self.edit, self.preferred) if value is not None]
        if len(given) != 1:
            raise ValueError("give one of rating (up or down), edit and preferred (a text)")
        if not given[0].strip():
            raise ValueError("the text is empty: an adapter would learn to say nothing")
        return self

    @property
    def kind(self) -> Kind:
        if self.rating is not None:
            return "rating"
        return "edit" if self.edit is not None else "preferred"

    @property
    def value(self) -> str:
        value = self.rating or self.edit or self.preferred
        assert value is not None
        return value


def feedback_object(feedback: Feedback) -> dict[str, Any]:
    """``learned_by`` is the learning run that took it."""
    served = feedback.completion
    return {
        "id": feedback.id,
        "object": "feedback",
        "created_at": feedback.created,
        "completion_id": served.id,
        "choice": served.choice,
        "adapter": served.adapter,
        "version": served.digest,
        "user": served.user,
        "kind": feedback.kind,
        feedback.kind: feedback.value,
        "prompt": served.prompt,
        "answer": served.answer,
        "served_at": served.created,
        "learned_by": feedback.run,
    }
