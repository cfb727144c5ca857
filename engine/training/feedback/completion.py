"""Served answers that are kept for feedback, and the feedback itself, as plain records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["rating", "edit", "preferred"]
# A text to continue, or the messages of a conversation as chat templates know them.
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One choice of a served answer.

    ``digest`` is the version that gave it. ``is_cut``: it ended at ``max_tokens``, not by itself.
    ``tenant`` and ``user`` are whose question it was; ``created`` is a Unix time.
    """

    id: str
    choice: int
    adapter: str
    digest: str
    prompt: Prompt
    answer: str
    created: int
    tenant: str = ""
    user: str | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user said about an answer.

    ``value`` of a rating is ``up`` or ``down``, otherwise the text that should have been served.
    ``run`` is the learning run that took it, None while it waits for one.
    """

    id: str
    kind: Kind
    value: str
    created: int
    completion: Completion
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Feedback that no run has taken: how much, and the Unix time of the oldest."""

    num_rows: int
    oldest: int | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """Answers of one version that users were for and against."""

    num_up: int = 0
    num_down: int = 0
