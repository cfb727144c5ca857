"""A judge says which of two answers is better: an adapter, or an endpoint of the operator's choice.

Each pair is shown in both orders: a judge that likes the first answer best, whatever it says, says
nothing.
"""

import asyncio
import json
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .asker import Asker
from .text_side import GateText

_CHOICE: Final = re.compile(r"\b([AB])\b")
_MAX_TOKENS: Final = 16
_TIMEOUT_SECONDS: Final = 60.0
_MAX_ANSWER_BYTES: Final = 1 << 20


class Judge(Protocol):
    """``ask`` raises ``OSError`` if nobody answers."""

    async def ask(self, questions: Sequence[str]) -> list[str]: ...


class NoJudge(OSError):
    """The endpoint gave no answer that can be read."""


@dataclass(frozen=True, slots=True)
class AdapterJudge:
    """Another version on the same base."""

    asker: Asker
    text: GateText
    digest: str

    async def ask(self, questions: Sequence[str]) -> list[str]:
        prompts = [self.text.prompt(question) for question in questions]
        answers = await self.asker.answers(
            self.digest, prompts, max_tokens=_MAX_TOKENS, label="judge"
        )
        return [self.text.text(answer.tokens) for answer in answers]


@dataclass(frozen=True, slots=True)
class HttpJudge:
    """An OpenAI-compatible ``/chat/completions`` at a URL that the operator allows."""

    url: str

    async def ask(self, questions: Sequence[str]) -> list[str]:
        return [await asyncio.to_thread(self._ask, question) for question in questions]

    def _ask(self, question: str) -> str:
        body = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(_MAX_ANSWER_BYTES)
        try:
            return str(json.loads(content)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoJudge(f"{self.url} answered with no completion ({error})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The operator allowed one place and no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def comparison(question: str, first: str, second: str) -> str:
    """What the judge reads."""
    return (
        f"Question:\n{question}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        "Which answer to the question is better? Reply with A or B alone."
    )


def win(forward: str, backward: str) -> float:
    """1 if the candidate won in both orders (first A, then B), 0 if it lost both, else a half."""
    votes = [_choice(forward) == "A", _choice(backward) == "B"]
    losses = [_choice(forward) == "B", _choice(backward) == "A"]
    return 1.0 if all(votes) else 0.0 if all(losses) else 0.5


def _choice(text: str) -> str | None:
    found = _CHOICE.search(text)
    return found[1] if found else None
