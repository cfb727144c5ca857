"""What is wrong with a training file, with line numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_PROBLEMS: Final = 50
_NAMED_LINES: Final = 10
_MAX_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Problem:
    """One row that cannot be trained on; ``code`` is a stable word, ``line`` counts from 1."""

    line: int
    code: str
    message: str


class RowRejected(ValueError):
    """Why a row cannot be trained on, where its line is not known yet.

    The message may quote the row: it is cut, and what is not printable is escaped.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(_printable(message))
        self.code = code

    def at(self, line: int) -> Problem:
        return Problem(line, self.code, str(self))


class ProblemList:
    """The first ``MAX_PROBLEMS`` problems and the number of all, however many there are."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.num_problems = 0

    def add(self, problem: Problem) -> None:
        self.num_problems += 1
        if len(self.first) < MAX_PROBLEMS:
            self.first.append(problem)


def summary(problems: Iterable[Problem], num_problems: int) -> str:
    """The first problems in one line of text, for an error message."""
    shown = list(problems)[:_NAMED_LINES]
    text = "; ".join(f"line {problem.line}: {problem.message}" for problem in shown)
    left = num_problems - len(shown)
    return f"{text} (and {left} more)" if left > 0 else text


def _printable(text: str) -> str:
    cut = text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]} ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
