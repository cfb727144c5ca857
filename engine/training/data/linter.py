"""Looks for what is allowed in a file and yet spoils most runs."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final, Protocol

from .finding import Finding
from .repetition import DominantAnswer, Duplicates, Leaks, ReversedPairs
from .row import Row
from .row_key import RowKey
from .suspicion import PairLengths, Patterns, ShortAnswers, TemplateMarks

_TINY: Final = 10
_SMALL: Final = 50


class _Rule(Protocol):
    """Sees every row once, keeps a few bytes of each at most, and then says what it saw."""

    def add(self, row: Row, key: RowKey) -> None: ...

    def findings(self, num_rows: int) -> Iterator[Finding]: ...


class Linter:
    """``add`` every row, then ask for the ``findings``.

    ``training`` are the keys and lines of the training file, for a validation file.
    """

    def __init__(
        self,
        special_tokens: Collection[str] = (),
        *,
        training: Iterable[tuple[RowKey, int]] | None = None,
    ) -> None:
        self._is_validation = training is not None
        self._num_rows = 0
        self._rules: list[_Rule] = [
            Duplicates(),
            DominantAnswer(),
            ReversedPairs(),
            TemplateMarks(special_tokens),
            Patterns(),
            ShortAnswers(),
            PairLengths(),
        ]
        if training is not None:
            self._rules.append(Leaks(training))

    def add(self, row: Row, key: RowKey) -> None:
        self._num_rows += 1
        for rule in self._rules:
            rule.add(row, key)

    def findings(self) -> Iterator[Finding]:
        if self._num_rows < _SMALL and not self._is_validation:
            is_tiny = self._num_rows < _TINY
            advice = "most of what is learnt is noise" if is_tiny else "50 and more are steadier"
            yield Finding(
                "warning" if is_tiny else "info",
                "few_rows",
                f"the file has {self._num_rows} rows: {advice}",
            )
        for rule in self._rules:
            yield from rule.findings(self._num_rows)
