"""Settings of learning on: what is repeated, what is held fast, and how old and new become one.

Imports no torch.
"""

import math
from dataclasses import dataclass
from typing import Literal

from .setting_rule import need


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How the rows of a replay file are mixed in.

    ``share`` is that of replayed rows among all rows of a step, and of their loss. With
    ``adaptive`` it grows up to ``max_share`` while the perplexity of held-out replay rows is more
    than ``tolerance`` (relative) above its start, and falls back when that is regained.
    ``loss_weight`` is of their cross-entropy, ``kl_weight`` of the divergence KL(anchor || policy)
    at the same tokens; the anchor is the bare base or, with ``kl_to`` start, the version that the
    run went on from. Up to ``num_held_out`` rows, a quarter at most, are measured and not learnt;
    with 0 all rows are learnt, and 64 of them measured: rows that each are worth keeping.
    """

    share: float = 0.15
    max_share: float = 0.5
    adaptive: bool = True
    tolerance: float = 0.01
    loss_weight: float = 1.0
    kl_weight: float = 0.0
    kl_to: Literal["base", "start"] = "base"
    num_held_out: int = 64

    def __post_init__(self) -> None:
        need(0 < self.share < 1, "share", self.share, "above 0 and below 1")
        is_bound = self.share <= self.max_share < 1
        need(is_bound, "max_share", self.max_share, f"at least the share {self.share} and below 1")
        for name in ("tolerance", "loss_weight", "kl_weight"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "at least 0")
        need(
            self.loss_weight + self.kl_weight > 0,
            "loss_weight",
            self.loss_weight,
            "above 0 without kl_weight",
        )
        need(self.kl_to in ("base", "start"), "kl_to", self.kl_to, "base or start")
        need(self.num_held_out >= 0, "num_held_out", self.num_held_out, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualSettings:
    """How a run goes on from a version.

    ``continue`` trains its factors further. ``merge`` freezes them, trains ``merge_rank`` fresh
    ranks beside them (as many as the version has, if left out), and at the end adds
    ``merge_weight`` times the fresh delta to the old one, recompressed to the old rank.
    ``orthogonality`` weighs O-LoRA's penalty (arXiv 2310.14152), the sum of |A_new @ A_old.T|; what
    was merged before is a part of A_old. ``soup`` makes the result the mean of the last so many
    checkpoints, taken on deltas; 0 takes none.
    """

    mode: Literal["continue", "merge"] = "continue"
    merge_rank: int | None = None
    merge_weight: float = 1.0
    orthogonality: float = 0.0
    soup: int = 0

    def __post_init__(self) -> None:
        need(self.mode in ("continue", "merge"), "mode", self.mode, "continue or merge")
        rank = self.merge_rank
        need(rank is None or rank >= 1, "merge_rank", rank, "at least 1, or left out")
        need(0 < self.merge_weight <= 2, "merge_weight", self.merge_weight, "above 0, up to 2")
        weight = self.orthogonality
        need(math.isfinite(weight) and weight >= 0, "orthogonality", weight, "at least 0")
        need(self.soup == 0 or self.soup >= 2, "soup", self.soup, "0, or at least 2 checkpoints")
        for name, value, default in (
            ("merge_rank", self.merge_rank, None),
            ("merge_weight", self.merge_weight, 1.0),
            ("orthogonality", self.orthogonality, 0.0),
        ):
            is_used = self.mode == "merge" or value == default
            need(is_used, name, value, "left out", "it belongs to the mode merge")
