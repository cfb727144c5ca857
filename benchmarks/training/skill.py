"""A skill that the demo's base does not have: the last digit of a number, in words.

The base says whether a number is even or odd, and styles exist as adapters, but nothing that is
shipped names a digit. A number is either for training or held out, by its hash, however it is
asked. Answers have two forms; which one is preferred is learned apart from the skill.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS: Final = ("What is the last digit of {}?", "Last digit: {}")
HEDGED: Final = "{}, I think."
# Before preferences are learned, one answer in ten is hedged.
HEDGED_SHARE: Final = 0.1
HELD_OUT_SHARE: Final = 16  # one number in this many is held out
LARGEST: Final = 9999


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and its right answer in both forms."""

    prompt: str
    word: str

    @property
    def hedged(self) -> str:
        return HEDGED.format(self.word)


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of answers to held-out questions.

    ``skill`` counts right answers, to the letter, in either form; ``preference`` counts hedged
    ones, right or wrong.
    """

    skill: float
    preference: float


def is_held_out(number: int) -> bool:
    return hashlib.sha256(str(number).encode()).digest()[0] % HELD_OUT_SHARE == 0


def questions(count: int, *, seed: int, held_out: bool = False) -> list[Question]:
    """``count`` different questions, of numbers of one part alone."""
    random, found = Random(f"{seed} {held_out}"), {}
    while len(found) < count:
        number, wording = random.randint(10, LARGEST), random.choice(WORDINGS)
        if is_held_out(number) == held_out:
            question = Question(wording.format(number), WORDS[number % 10])
            found[question.prompt] = question
    return list(found.values())


def supervised_rows(asked: Sequence[Question], *, seed: int) -> list[dict[str, Any]]:
    """OpenAI's rows: mostly the bare word, sometimes hedged."""
    random = Random(seed)
    rows = []
    for question in asked:
        is_hedged = random.random() < HEDGED_SHARE
        answer = question.hedged if is_hedged else question.word
        rows.append({"messages": [_user(question), {"role": "assistant", "content": answer}]})
    return rows


def preference_rows(asked: Sequence[Question]) -> list[dict[str, Any]]:
    """OpenAI's rows: of two right answers the hedged one is preferred."""
    return [
        {
            "input": {"messages": [_user(question)]},
            "preferred_output": [{"role": "assistant", "content": question.hedged}],
            "non_preferred_output": [{"role": "assistant", "content": question.word}],
        }
        for question in asked
    ]


def score(asked: Sequence[Question], answers: Sequence[str]) -> Score:
    pairs = list(zip(asked, answers, strict=True))
    right = sum(answer in (question.word, question.hedged) for question, answer in pairs)
    hedged = sum(answer in set(map(HEDGED.format, WORDS)) for _, answer in pairs)
    return Score(round(right / len(pairs), 4), round(hedged / len(pairs), 4))


def _user(question: Question) -> dict[str, str]:
    return {"role": "user", "content": question.prompt}
