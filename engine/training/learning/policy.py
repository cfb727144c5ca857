"""How an adapter learns from its users: what is kept, when a run starts, and what it must show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..data.config import Method
from ..feedback.completion import Waiting
from ..feedback.training_row import ROW_KIND_OF_METHOD

_LONGEST_SECONDS: Final = 10 * 365 * 24 * 3600
_REPLAYED, _MOST_REPLAYED = 1000, 100_000
_OFF: Final = ("share", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPolicy:
    """Bars of the canary window.

    Both versions must have ``min_requests``. The canary's error rate may be ``max_error_increase``
    above that of the live version, its share of answers that users were against
    ``max_dislike_increase``; its answers may be longer or shorter by ``length_factor``, and its
    latencies longer by ``latency_factor``. It is rolled back at once when it is beyond a bar with
    ``confidence``, and after ``max_seconds`` if it has not shown by then that it keeps them all.
    """

    min_requests: int = 100
    max_error_increase: float = 0.01
    max_dislike_increase: float = 0.05
    length_factor: float = 2.0
    latency_factor: float = 1.5
    max_seconds: int = 7 * 24 * 3600
    confidence: float = 0.99

    def __post_init__(self) -> None:
        _need(1 <= self.min_requests <= 10**9, "min_requests", self.min_requests, "at least 1")
        for name in ("max_error_increase", "max_dislike_increase"):
            _need(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("length_factor", "latency_factor"):
            _need(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _need(
            1 <= self.max_seconds <= _LONGEST_SECONDS,
            "max_seconds",
            self.max_seconds,
            f"1 to {_LONGEST_SECONDS}",
        )
        _need(0.5 < self.confidence < 1, "confidence", self.confidence, "above 0.5 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPolicy:
    """One adapter's.

    Answers are kept while it is ``enabled`` or ``feedback`` is true: ``keep_completions`` of them,
    for ``keep_seconds``. A run starts when ``min_rows`` pieces of feedback wait that ``method``
    learns from, or when the oldest has waited for ``max_age_s`` (0: it may wait for ever).
    ``gate`` and ``training`` are sections of its job. ``validation_file`` is what every new version
    is measured on, without it the answers to a share ``hold_out`` of the questions, which are not
    learned. ``seed`` is that of every run; one is drawn if it is None. A version that passes the
    gate gets ``canary_weight`` of the requests.

    ``replay`` is the section of that name, with what the learner knows of itself: the reservoir of
    what the adapter was taught, up to ``capacity`` rows, and those of an uploaded ``file`` beside
    them. A ``share`` of 0 repeats and remembers nothing.
    """

    enabled: bool = False
    feedback: bool = False
    method: Method = "supervised"
    min_rows: int = 64
    max_age_s: int = 24 * 3600
    replay: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    validation_file: str | None = None
    hold_out: float = 0.1
    seed: int | None = None
    canary_weight: float = 0.1
    canary: CanaryPolicy = field(default_factory=CanaryPolicy)
    keep_completions: int = 10_000
    keep_seconds: int = 30 * 24 * 3600

    def __post_init__(self) -> None:
        known = tuple(ROW_KIND_OF_METHOD)
        _need(self.method in known, "method", self.method, f"one of {', '.join(known)}")
        _need(1 <= self.min_rows <= 10**6, "min_rows", self.min_rows, "1 to 1000000")
        _need(self.max_age_s >= 0, "max_age_s", self.max_age_s, "at least 0; 0 is no limit")
        weight = self.canary_weight
        _need(0 < weight < 1, "canary_weight", weight, "above 0 and below 1: both must be asked")
        completions = self.keep_completions
        _need(1 <= completions <= 10**7, "keep_completions", completions, "1 to 10000000")
        seconds = self.keep_seconds
        _need(1 <= seconds <= _LONGEST_SECONDS, "keep_seconds", seconds, f"1 to {_LONGEST_SECONDS}")
        _need(0 <= self.hold_out <= 0.5, "hold_out", self.hold_out, "0 to 0.5")
        is_seed = self.seed is None or 0 <= self.seed < 1 << 31
        _need(is_seed, "seed", self.seed, f"0 to {(1 << 31) - 1}, or left out")
        capacity, file = self.replay.get("capacity", 1), self.replay.get("file")
        is_count = type(capacity) is int and 1 <= capacity <= _MOST_REPLAYED
        _need(is_count, "replay.capacity", capacity, f"1 to {_MOST_REPLAYED}")
        _need(file is None or isinstance(file, str), "replay.file", file, "the id of a file")
        for name, place in (("gate", "gate"), ("replay", "replay"), ("publish", "canary_weight")):
            _need(name not in self.training, f"training.{name}", "given", f"said by {place}")

    @property
    def is_keeping(self) -> bool:
        """Whether answers are kept."""
        return self.enabled or self.feedback

    def is_due(self, waiting: Waiting, now: float) -> bool:
        """Whether what waits is enough, or has waited for too long."""
        if waiting.oldest is None:
            return False
        is_old = self.max_age_s > 0 and now - waiting.oldest >= self.max_age_s
        return is_old or waiting.num_rows >= self.min_rows

    @property
    def replay_capacity(self) -> int:
        """Rows that are remembered; 0 where nothing is repeated."""
        if ("share", self.replay.get("share")) == _OFF:
            return 0
        return self.replay.get("capacity", _REPLAYED)

    @property
    def files(self) -> dict[str, str]:
        """Uploaded files that runs need, by the setting that names each."""
        named = {
            "validation_file": self.validation_file,
            "replay.file": self.replay.get("file"),
            "gate.recent": self.gate.get("recent"),
        }
        return {place: file for place, file in named.items() if isinstance(file, str)}

    def sections(self, *, replay_file: str | None) -> dict[str, Mapping[str, Any]]:
        """The sections of a run's job, which repeats the rows of ``replay_file``."""
        found = dict(self.training)
        if self.gate:
            found["gate"] = self.gate
        if replay_file is not None:
            own = {k: v for k, v in self.replay.items() if k != "capacity" and (k, v) != _OFF}
            # Each row is something that users taught: none is left out to be measured alone.
            found["replay"] = {"num_held_out": 0, **own, "file": replay_file}
        found["publish"] = {"mode": "canary", "weight": self.canary_weight}
        return found


def _need(condition: bool, name: str, value: object, limit: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; it must be {limit}")
