"""What every request of a load test asks for, as a body of OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """What every request asks for; its words are drawn from ``seed`` and its number."""

    api: Api = "chat"
    num_words: int = 1
    max_tokens: int = 64
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0

    def body(self, model: str, number: int) -> dict[str, Any]:
        draw = Random(f"{self.seed} {number}")
        text = " ".join(draw.choices(_WORDS, k=self.num_words))
        asked = (
            {"messages": [{"role": "user", "content": text}]}
            if self.api == "chat"
            else {"prompt": text}
        )
        further = {"ignore_eos": True} if self.ignore_eos else {}
        return {
            "model": model,
            **asked,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **further,
        }
