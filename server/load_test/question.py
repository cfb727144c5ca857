"""What every request of a load test asks for, as a body of OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

Api = Literal["chat", "completions"]
PATHS: Final[Mapping[Api, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
_WORDS: Final = (
    "river boat lion paper stone green window seven garden market winter letter music bridge "
    "table summer silver forest answer morning number castle friend orange village question "
    "mountain kitchen yellow teacher island evening"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What every request asks for; its words are drawn from ``seed`` and its number.

    With ``token_ids`` a completion's prompt is ``num_words`` of these instead of words. ``fields``
    are what a server wants beside OpenAI's fields, by the model that is asked.
    """

    api: Api = "chat"
    num_words: int = 1
    max_tokens: int = 64
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0
    token_ids: range | None = None
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.token_ids is not None and self.api == "chat":
            raise ValueError("a chat is made of words; ask completions for token ids")

    def body(self, model: str, number: int) -> dict[str, Any]:
        further = {"ignore_eos": True} if self.ignore_eos else {}
        return {
            "model": model,
            **self._prompt(Random(f"{self.seed} {number}")),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **further,
            **self.fields.get(model, {}),
        }

    def _prompt(self, draw: Random) -> dict[str, Any]:
        if self.token_ids is not None:
            return {"prompt": draw.choices(self.token_ids, k=self.num_words)}
        text = " ".join(draw.choices(_WORDS, k=self.num_words))
        if self.api == "chat":
            return {"messages": [{"role": "user", "content": text}]}
        return {"prompt": text}
