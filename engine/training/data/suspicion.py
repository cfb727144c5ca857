"""Texts that look like a mistake was made: marks of templates, holes, broken letters, lengths."""

import re
from collections.abc import Collection, Iterator
from typing import Final

from .finding import Finding, LineSample, percent
from .row import ChatPair, ChatRow, CompletionPair, Row
from .row_key import RowKey, normalised

_SHORT_CHARS: Final = 3
_FEW, _MOST = 0.02, 0.9
_SKEW: Final = 1.5
_MIN_PAIRS: Final = 10
_MARKERS: Final = (
    r"<\|[A-Za-z_]{2,24}\|>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"</?s>",
    r"<(?:start|end)_of_turn>",
    r"(?m:^###? ?(?:Instruction|Response|Human|Assistant):)",
)
_PLACEHOLDER: Final = re.compile(r"\{\{.{1,80}?\}\}|\{%.{1,80}?%\}|\$\{\w{1,40}\}")
# A replacement character, or UTF-8 that was read as Latin-1.
_BROKEN: Final = re.compile("\ufffd|\u00e2\u20ac|\u00c3[\u0080-\u00bf]")


class TemplateMarks:
    """Marks of chat templates in the texts, which serving treats as ordinary letters.

    In rows of plain text the base's own ``special_tokens`` are at work, and only foreign marks are
    suspicious.
    """

    def __init__(self, special_tokens: Collection[str]) -> None:
        own = [re.escape(token) for token in sorted(special_tokens, key=len, reverse=True) if token]
        self._mark = re.compile("|".join([*own, *_MARKERS]))
        self._own = frozenset(special_tokens)
        self._lines = LineSample()
        self._first = ""

    def add(self, row: Row, key: RowKey) -> None:
        own = frozenset[str]() if isinstance(row, ChatRow | ChatPair) else self._own
        for text in row.texts:
            for match in self._mark.finditer(text):
                if match[0] not in own:
                    self._lines.add(row.line)
                    self._first = self._first or match[0]
                    return

    def findings(self, num_rows: int) -> Iterator[Finding]:
        if self._lines.num_lines:
            yield self._lines.finding(
                "warning",
                "template_marks",
                f"{self._lines.num_lines} rows ({percent(self._lines.num_lines, num_rows)}) have "
                f"marks of a chat template, such as {self._first!a}: they are learnt as letters, "
                "not as turns; write messages, and serving's template puts the marks",
            )


class Patterns:
    """Holes that were to be filled in, letters of a wrong encoding, thoughts without an end."""

    def __init__(self) -> None:
        self._holes, self._broken, self._open = LineSample(), LineSample(), LineSample()

    def add(self, row: Row, key: RowKey) -> None:
        for lines, pattern in ((self._holes, _PLACEHOLDER), (self._broken, _BROKEN)):
            if any(pattern.search(text) for text in row.texts):
                lines.add(row.line)
        if any(text.count("<think>") != text.count("</think>") for text in row.answers):
            self._open.add(row.line)

    def findings(self, num_rows: int) -> Iterator[Finding]:
        if self._holes.num_lines:
            yield self._holes.finding(
                "info",
                "placeholders",
                f"{self._holes.num_lines} rows have something like {{{{name}}}}: if it was to be "
                "filled in, it is learnt as it stands",
            )
        if self._broken.num_lines:
            yield self._broken.finding(
                "warning",
                "broken_letters",
                f"{self._broken.num_lines} rows have letters that were read in the wrong "
                "encoding; export the file as UTF-8 again",
            )
        if self._open.num_lines:
            yield self._open.finding(
                "warning",
                "open_thoughts",
                f"{self._open.num_lines} rows have answers with <think> and no </think>, or the "
                "other way round: such an answer never comes to its point",
            )


class ShortAnswers:
    """Answers of a few letters among longer ones."""

    def __init__(self) -> None:
        self._lines = LineSample()
        self._num_answers = 0

    def add(self, row: Row, key: RowKey) -> None:
        self._num_answers += len(row.answers)
        if any(len(answer.strip()) <= _SHORT_CHARS for answer in row.answers):
            self._lines.add(row.line)

    def findings(self, num_rows: int) -> Iterator[Finding]:
        num_short = self._lines.num_lines
        if not num_short or num_short < _FEW * num_rows:
            return
        what = f"{num_short} rows ({percent(num_short, num_rows)}) have answers of up to "
        what += f"{_SHORT_CHARS} letters"
        if num_short >= _MOST * num_rows:
            yield self._lines.finding("info", "short_answers", f"{what}: fine for labels")
        else:
            advice = "beside longer ones: look for cut-off rows"
            yield self._lines.finding("warning", "short_answers", f"{what} {advice}")


class PairLengths:
    """Better answers that are longer, or shorter, than the worse ones: length is what is learnt."""

    def __init__(self) -> None:
        self._num_pairs = self._num_longer = self._chosen = self._rejected = 0
        self._alike = LineSample()

    def add(self, row: Row, key: RowKey) -> None:
        if not isinstance(row, ChatPair | CompletionPair):
            return
        self._num_pairs += 1
        self._num_longer += len(row.chosen) > len(row.rejected)
        self._chosen += len(row.chosen)
        self._rejected += len(row.rejected)
        if row.chosen != row.rejected and normalised(row.chosen) == normalised(row.rejected):
            self._alike.add(row.line)

    def findings(self, num_rows: int) -> Iterator[Finding]:
        if self._alike.num_lines:
            yield self._alike.finding(
                "warning",
                "alike_answers",
                f"{self._alike.num_lines} pairs differ in case, spaces or punctuation only: that "
                "is what will be preferred",
            )
        ratio = self._chosen / max(1, self._rejected)
        if self._num_pairs >= _MIN_PAIRS and not 1 / _SKEW < ratio < _SKEW:
            yield Finding(
                "warning",
                "length_skew",
                f"chosen answers have {self._chosen / self._num_pairs:.0f} letters on average, "
                f"rejected ones {self._rejected / self._num_pairs:.0f}, and "
                f"{percent(self._num_longer, self._num_pairs)} of the chosen are the longer ones: "
                "the model may learn the length instead of the quality",
            )
