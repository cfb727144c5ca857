"""What occurs again in a file, or in two: rows, prompts, answers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from .finding import Finding, LineSample, Severity, percent
from .row import ChatPair, ChatRow, CompletionPair, CompletionRow, Row
from .row_key import RowKey, digest, normalised

_MANY: Final = 0.01
# With up to this many different answers a file teaches to choose, and choices may repeat.
_MAX_CHOICES: Final = 20
_LARGE_SHARE: Final = 0.2
_LARGE_CHOICE: Final = 0.8
_MIN_ANSWERS: Final = 20
_SHOWN_CHARS: Final = 60


class Duplicates:
    """Rows that come again, exactly or nearly, and prompts that come with several answers."""

    def __init__(self) -> None:
        self._exact, self._near, self._prompt = LineSample(), LineSample(), LineSample()
        self._rows: set[int] = set()
        self._prompts: set[int] = set()

    def add(self, row: Row, key: RowKey) -> None:
        if key.exact in self._rows:
            self._exact.add(row.line)
        elif key.near in self._rows:
            self._near.add(row.line)
        elif key.prompt in self._prompts and isinstance(row, ChatRow | CompletionRow):
            self._prompt.add(row.line)
        self._rows |= {key.exact, key.near}
        self._prompts.add(key.prompt)

    def findings(self, num_rows: int) -> Iterator[Finding]:
        for lines, code, what in (
            (self._exact, "duplicates", "are the same as a row before: it counts double"),
            (
                *(self._near, "near_duplicates"),
                "differ from a row before in case, spaces or punctuation only",
            ),
            (
                *(self._prompt, "repeated_prompts"),
                "have the prompt of a row before and another answer: make sure that both are right",
            ),
        ):
            if lines.num_lines:
                share = percent(lines.num_lines, num_rows)
                severity: Severity = "warning" if lines.num_lines > _MANY * num_rows else "info"
                yield lines.finding(severity, code, f"{lines.num_lines} rows ({share}) {what}")


class DominantAnswer:
    """One answer that most prompts get: the model may learn to give it always."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._first: dict[int, tuple[int, str]] = {}

    def add(self, row: Row, key: RowKey) -> None:
        for answer in row.answers:
            number = digest(normalised(answer))
            self._counts[number] += 1
            self._first.setdefault(number, (row.line, answer[:_SHOWN_CHARS]))

    def findings(self, num_rows: int) -> Iterator[Finding]:
        total = self._counts.total()
        if total < _MIN_ANSWERS:
            return
        ((number, count),) = self._counts.most_common(1)
        limit = _LARGE_CHOICE if len(self._counts) <= _MAX_CHOICES else _LARGE_SHARE
        if count >= limit * total:
            line, text = self._first[number]
            yield Finding(
                "warning",
                "dominant_answer",
                f"{count} of {total} answers ({percent(count, total)}) are {text!a}: the model "
                "may learn to say it always; balance the answers",
                (line,),
            )


class ReversedPairs:
    """Pairs whose answers are better and worse the other way round elsewhere."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._lines = LineSample()

    def add(self, row: Row, key: RowKey) -> None:
        if not isinstance(row, ChatPair | CompletionPair):
            return
        if digest("\0".join([row.prompt, row.rejected, row.chosen])) in self._seen:
            self._lines.add(row.line)
        self._seen.add(digest("\0".join([row.prompt, row.chosen, row.rejected])))

    def findings(self, num_rows: int) -> Iterator[Finding]:
        if self._lines.num_lines:
            yield self._lines.finding(
                "warning",
                "reversed_pairs",
                f"{self._lines.num_lines} pairs say the opposite of a pair before: chosen and "
                "rejected are exchanged",
            )


class Leaks:
    """Rows of the validation file that are in the training file, whose keys are given."""

    def __init__(self, training: Iterable[tuple[RowKey, int]]) -> None:
        self._exact: dict[int, int] = {}
        self._near: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        for key, line in training:
            self._exact.setdefault(key.exact, line)
            self._near.setdefault(key.near, line)
            self._prompts.setdefault(key.prompt, line)
        self._found = {name: LineSample() for name in ("exact", "near", "prompt")}
        self._first: dict[str, int] = {}

    def add(self, row: Row, key: RowKey) -> None:
        for name, known, number in (
            ("exact", self._exact, key.exact),
            ("near", self._near, key.near),
            ("prompt", self._prompts, key.prompt if row.prompt else -1),
        ):
            if number in known:
                self._found[name].add(row.line)
                self._first.setdefault(name, known[number])
                return

    def findings(self, num_rows: int) -> Iterator[Finding]:
        for name, code, what in (
            ("exact", "leaked_rows", "are in the training file"),
            ("near", "leaked_near_rows", "are in the training file but for case or punctuation"),
            ("prompt", "leaked_prompts", "have a prompt of the training file"),
        ):
            lines = self._found[name]
            if lines.num_lines:
                yield lines.finding(
                    "warning",
                    code,
                    f"{lines.num_lines} validation rows ({percent(lines.num_lines, num_rows)}) "
                    f"{what} (line {lines.first[0]} is line {self._first[name]} there): the "
                    "validation loss will look better than the model is",
                )
