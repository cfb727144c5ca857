"""What is known of a training file once all of it was read: counts, lengths, problems, findings."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

import msgspec

from ...errors import RequestRejected
from ..example import Example, Item, Preference, Rating
from .finding import Finding, percent
from .problem import Problem, summary

_MUCH_TRUNCATED: Final = 0.05


class DatasetRejected(RequestRejected):
    """A file that cannot be trained on; ``report`` says why, line by line."""

    code = "invalid_training_file"

    def __init__(self, report: "Report", *, param: str = "training_file") -> None:
        super().__init__(_reason(report), param=param)
        self.report = report


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many examples have up to ``max_tokens`` tokens, and more than the bucket before."""

    max_tokens: int
    num_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``num_rows`` are the rows that can be trained on; a row may give several examples.

    ``num_split`` rows gave several. ``num_truncated`` rows are longer than ``max_length``.
    ``num_endless`` examples do not teach where to stop: they were truncated, or a long text goes on
    in the next one. ``problems`` are the first of ``num_problems`` bad rows.
    """

    format: str | None
    num_rows: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_split: int = 0
    num_truncated: int = 0
    num_endless: int = 0
    histogram: tuple[Bucket, ...] = ()
    num_problems: int = 0
    problems: tuple[Problem, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether training on it makes sense: no bad row, no finding that is an error."""
        has_errors = any(finding.severity == "error" for finding in self.findings)
        return self.num_rows > 0 and not self.num_problems and not has_errors

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)


class TokenTally:
    """Counts the tokens of examples as they are made."""

    def __init__(self, end_tokens: frozenset[int]) -> None:
        self.num_rows = self.num_examples = self.num_tokens = self.num_trained_tokens = 0
        self.num_split = self.num_truncated = self.num_endless = 0
        self.num_desirable = self.num_undesirable = 0
        self._end_tokens = end_tokens
        self._lengths: Counter[int] = Counter()

    def add_row(self, num_examples: int, *, is_truncated: bool) -> None:
        self.num_rows += 1
        self.num_split += num_examples > 1
        self.num_truncated += is_truncated

    def add(self, item: Item) -> None:
        match item:
            case Example():
                learnt = [t for t, w in zip(item.ids, item.weights, strict=True) if w == 1.0]
                num_tokens, is_ended = len(item.ids), not self._end_tokens.isdisjoint(learnt)
            case Preference():
                learnt = [*item.chosen, *item.rejected]
                num_tokens = len(item.prompt) + len(learnt)
                is_ended = item.chosen[-1] in self._end_tokens
            case Rating():
                learnt = list(item.completion)
                num_tokens = len(item.prompt) + len(learnt)
                is_ended = learnt[-1] in self._end_tokens
                self.num_desirable += item.is_desirable
                self.num_undesirable += not item.is_desirable
        self.num_examples += 1
        self.num_tokens += num_tokens
        self.num_trained_tokens += len(learnt)
        self.num_endless += not is_ended
        self._lengths[max(1, (num_tokens - 1).bit_length())] += 1

    def histogram(self) -> tuple[Bucket, ...]:
        """Buckets that double in size, from the first to the last that has any."""
        if not self._lengths:
            return ()
        powers = range(min(self._lengths), max(self._lengths) + 1)
        return tuple(Bucket(2**power, self._lengths[power]) for power in powers)

    def findings(self, max_length: int) -> list[Finding]:
        return [*self._truncated(max_length), *self._unbalanced()]

    def _unbalanced(self) -> list[Finding]:
        """Ratings want weights in the ratio of equation 8 of arXiv 2402.01306."""
        good, bad = self.num_desirable, self.num_undesirable
        if good == bad:
            return []
        if not good or not bad:
            message = (
                f"all {good + bad} ratings are {'good' if good else 'bad'}: nothing says what the "
                "other kind looks like; add some, or train on the good ones as supervised rows"
            )
            return [Finding("warning", "one_sided_ratings", message)]
        rarer = "desirable_weight" if good < bad else "undesirable_weight"
        message = (
            f"{good} good and {bad} bad ratings; they count alike with {rarer} "
            f"{max(good, bad) / min(good, bad):.3g}"
        )
        return [Finding("info", "unbalanced_ratings", message)]

    def _truncated(self, max_length: int) -> list[Finding]:
        if not self.num_truncated:
            return []
        share = percent(self.num_truncated, self.num_rows)
        is_endless = self.num_endless == self.num_examples
        is_much = self.num_truncated > _MUCH_TRUNCATED * self.num_rows
        message = (
            f"{self.num_truncated} rows ({share}) are longer than max_length {max_length} and were "
            "cut off"
        )
        if is_endless:
            message += ", every one before its end: the model would learn never to stop"
        advice = "; raise max_length, or shorten the rows"
        severity = "error" if is_endless else "warning" if is_much else "info"
        return [Finding(severity, "truncated", message + advice)]


def _reason(report: Report) -> str:
    if report.num_problems:
        return summary(report.problems, report.num_problems)
    errors = [finding.message for finding in report.findings if finding.severity == "error"]
    return "; ".join(errors) or "the file has no rows"
