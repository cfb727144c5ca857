"""What a trained version must show before a name points at it: a policy, versioned and digested."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import msgspec

from ..setting_rule import need
from .text_rule import check_pattern, check_schema

POLICY_VERSION: Final = 1
_MOST_CASES, _MOST_CHARS = 500, 20_000
_SHARES: Final = (
    "min_end_rate",
    "max_loop_rate",
    "max_refusal_increase",
    "max_format_loss",
    "min_reward_accuracy",
    "max_chosen_drop",
    "min_suite_rate",
    "max_fact_loss",
    "min_judge_win_rate",
)
_OPEN: Final = ("max_loss_increase", "max_replay_increase", "max_divergence")
# Every check that a policy can require; each is in the file of its name or says so there.
CHECKS: Final = (
    "finite",
    "validation_loss",
    "replay_perplexity",
    "divergence",
    "reward_accuracy",
    "chosen_drop",
    "end_rate",
    "loop_rate",
    "length",
    "refusal_rate",
    "answer_format",
    "suite",
    "facts",
    "judge",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question with the one right answer, ``exact`` or as a ``pattern`` to be found in it."""

    prompt: str
    exact: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        need(0 < len(self.prompt) <= _MOST_CHARS, "prompt", len(self.prompt), "1 to 20000 letters")
        is_one = (self.exact is None) != (self.pattern is None)
        need(is_one, "probe", self.prompt[:40], "given exact or pattern, and not both")
        if self.pattern is not None:
            check_pattern(self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """Bars of the quality gate; ``required`` names checks that must not be left out.

    ``num_prompts`` prompts of the training data are answered greedily; 0 skips those checks.
    ``min_end_rate`` is the share of answers that must end by themselves, of those that do so in the
    training data; ``max_loop_rate`` the share that may end in a loop, above that of the data;
    ``length_factor`` how far the mean length may be from the data's, either way.
    ``max_refusal_increase`` is the share of answers that may be refusals, above that of the data
    and of the baseline. ``answer_format`` auto takes JSON for the format where all sampled answers
    of the data are JSON; ``max_format_loss`` is of the share of valid answers.

    The baseline is the live version, else the start of the run, else the bare base. Losses may be
    ``max_loss_increase`` above its own, the replay perplexity ``max_replay_increase`` (both
    relative, both at ``confidence`` in a paired bootstrap). ``max_divergence`` is in nats per token
    of recent answers. Pairs must be told apart in ``min_reward_accuracy`` of cases, and chosen
    answers may lose ``max_chosen_drop`` of their log-probability per token.

    ``suite`` and ``facts`` are asked of the version and of the baseline. ``judge`` is an adapter's
    name or that of an endpoint which the operator allows; it compares answers in both orders.
    """

    version: int = POLICY_VERSION
    sha256: str | None = None
    required: tuple[str, ...] = ()
    confidence: float = 0.95
    num_prompts: int = 32
    min_end_rate: float = 0.95
    max_loop_rate: float = 0.05
    length_factor: float = 3.0
    max_refusal_increase: float = 0.05
    answer_format: Literal["auto", "none", "json", "schema", "pattern"] = "auto"
    answer_schema: Mapping[str, Any] | None = None
    answer_pattern: str | None = None
    max_format_loss: float = 0.05
    max_loss_increase: float = 0.0
    max_replay_increase: float = 0.02
    max_divergence: float = 0.5
    min_reward_accuracy: float = 0.55
    max_chosen_drop: float = 0.1
    suite: tuple[Probe, ...] = ()
    min_suite_rate: float = 0.0
    facts: tuple[Probe, ...] = ()
    max_fact_loss: float = 0.0
    judge: str | None = None
    min_judge_win_rate: float = 0.5

    def __post_init__(self) -> None:
        need(self.version == POLICY_VERSION, "version", self.version, str(POLICY_VERSION))
        need(0 <= self.num_prompts <= 512, "num_prompts", self.num_prompts, "0 to 512")
        need(self.length_factor >= 1, "length_factor", self.length_factor, "at least 1")
        need(0.5 <= self.confidence < 1, "confidence", self.confidence, "0.5 to below 1")
        for name in _SHARES:
            need(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in _OPEN:
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "at least 0")
        for name in self.required:
            need(name in CHECKS, "required", name, f"one of {', '.join(CHECKS)}")
        for name in ("suite", "facts"):
            count = len(getattr(self, name))
            need(count <= _MOST_CASES, name, count, f"up to {_MOST_CASES} probes")
        self._check_format()
        need(
            self.sha256 is None or self.sha256 == self.digest,
            "sha256",
            self.sha256,
            f"{self.digest} for these settings",
            "the policy was changed after it was digested, or leave sha256 out",
        )

    @property
    def digest(self) -> str:
        """sha256 of all settings as canonical JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sha256"}
        return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()

    def document(self) -> dict[str, Any]:
        """All settings with their digest: what a policy file holds."""
        return {**asdict(self), "sha256": self.digest}

    def _check_format(self) -> None:
        kind = self.answer_format
        kinds = ("auto", "none", "json", "schema", "pattern")
        need(kind in kinds, "answer_format", kind, ", ".join(kinds))
        for name in ("schema", "pattern"):
            given = getattr(self, f"answer_{name}")
            is_right = (given is not None) == (kind == name)
            need(is_right, f"answer_{name}", given, f"given with answer_format {name} alone")
        if self.answer_schema is not None:
            check_schema(self.answer_schema)
        if self.answer_pattern is not None:
            check_pattern(self.answer_pattern)
