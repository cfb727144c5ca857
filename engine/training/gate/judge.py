"""A judge says which of two answers is better: an adapter, or an endpoint of the operator's choice.

Each pair is shown in both orders: a judge that likes the first answer best, whatever it says, says
nothing.
"""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from .asker import Asker
from .endpoint import NoAnswer, post
from .text_side import GateText

logger = logging.getLogger(__name__)

_CHOICE: Final = re.compile(r"\b([AB])\b")
_MAX_TOKENS: Final = 16
_TIMEOUT_SECONDS: Final = 60.0
_ALL_SECONDS: Final = 1800.0
_AT_ONCE: Final = 4
_MAX_ANSWER_BYTES: Final = 1 << 20


class Judge(Protocol):
    """``ask`` raises ``OSError`` if nobody answers."""

    async def ask(self, questions: Sequence[str]) -> list[str]: ...


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
        """Raises ``NoAnswer`` as soon as one question has none."""
        room = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.timeout(_ALL_SECONDS), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(question, room)) for question in questions]
        except TimeoutError:
            raise NoAnswer(f"it did not answer everything within {_ALL_SECONDS:g} s") from None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, question: str, room: asyncio.Semaphore) -> str:
        body = {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        url = f"{self.url.rstrip('/')}/chat/completions"
        try:
            async with room:
                content = await post(
                    url,
                    json.dumps(body).encode(),
                    seconds=_TIMEOUT_SECONDS,
                    max_bytes=_MAX_ANSWER_BYTES,
                )
            return str(json.loads(content)["choices"][0]["message"]["content"])
        except NoAnswer as error:
            logger.warning("the judge at %s: %s", self.url, error)
            raise
        except OSError as error:
            logger.warning("the judge at %s cannot be reached: %s", self.url, error)
            raise NoAnswer("it cannot be reached") from None
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise NoAnswer("it answered with no completion") from None


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
