"""Everything that a merge can be told, checked before any weight is read. Knows no tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .depth import Curve, Filter
from .method import Method, find_method
from .rank_policy import RankPolicy

MAX_PARENTS: Final = 16
Dtype = Literal["float32", "float16", "bfloat16"]
OnAntiparallel = Literal["error", "lerp"]
DTYPES: Final[tuple[Dtype, ...]] = ("float32", "float16", "bfloat16")
_DEFAULTS: Final[dict[str, Any]] = {
    "t": Curve((0.5,)),
    "filters": (),
    "density": 0.5,
    "epsilon": 0.1,
    "gamma": 0.01,
    "seed": 0,
    "sequential": False,
    "on_antiparallel": "error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How ``num_parents`` adapters become one; None leaves a setting to the method.

    ``weights`` are one number per parent. ``density`` is the share of entries that stay, ``gamma``
    that of the largest which breadcrumbs drops, ``epsilon`` the width of DELLA's probabilities.
    ``dtype`` None is the widest of the parents'. Raises ``ValueError`` with the remedy.
    """

    num_parents: int
    method: str = "linear"
    weights: tuple[float, ...] | None = None
    t: Curve | None = None
    filters: tuple[Filter, ...] | None = None
    density: float | None = None
    epsilon: float | None = None
    gamma: float | None = None
    seed: int | None = None
    sequential: bool | None = None
    on_antiparallel: OnAntiparallel | None = None
    rank: RankPolicy | None = None
    dtype: Dtype | None = None
    allow_different_bases: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_parents <= MAX_PARENTS:
            raise ValueError(
                f"{self.num_parents} parents are given; a merge takes 1 to {MAX_PARENTS}"
            )
        options = self.rule.options
        for name in _DEFAULTS:
            if getattr(self, name) is not None and name not in options:
                raise ValueError(f"{name} means nothing to {self.method}; leave it out")
        if self.weights is not None:
            self._check_weights(self.weights)
        self._check_arc()
        self._check_shares()
        if self.method == "cat" and self.rank is not None and not self.rank.is_exact:
            raise ValueError("cat keeps all ranks; use svd or linear with a rank")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def rule(self) -> Method:
        return find_method(self.method)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, or the method's own."""
        return self.weights or self.rule.weights(self.num_parents)

    @property
    def uses_t(self) -> bool:
        """Whether ``t``, and not the weights, says how far to go."""
        return "t" in self.rule.options and self.num_parents == 2 and self.weights is None

    def setting(self, name: str) -> Any:
        """What was given for an optional setting, or its default."""
        given = getattr(self, name)
        return _DEFAULTS[name] if given is None else given

    def settings(self) -> dict[str, Any]:
        """All that the method reads, as JSON; for the report."""
        read = {name: self.setting(name) for name in sorted(self.rule.options)}
        if "filters" in read:
            read["filters"] = [
                {"match": one.match, "t": list(one.curve.points)} for one in read["filters"]
            ]
        if "t" in read:
            read["t"] = list(read["t"].points) if self.uses_t else None
        return read

    def _check_weights(self, weights: Sequence[float]) -> None:
        if not self.rule.has_weights:
            raise ValueError(f"{self.method} takes no weights; leave them out")
        if len(weights) != self.num_parents:
            raise ValueError(
                f"{len(weights)} weights are given for {self.num_parents} parents; give one each"
            )
        for weight in weights:
            if not math.isfinite(weight):
                raise ValueError(f"a weight is {weight}; it must be a finite number")
        if not any(weights):
            raise ValueError("all weights are 0, which makes an empty adapter; change one of them")
        if self.method in ("slerp", "karcher") and min(weights) < 0:
            raise ValueError(
                f"a weight is {min(weights)}; {self.method} takes none below 0, linear does"
            )

    def _check_arc(self) -> None:
        if self.t is None and self.filters is None:
            return
        if self.num_parents != 2:
            raise ValueError(
                f"t is between 2 parents, {self.num_parents} are given; use weights instead"
            )
        if self.weights is not None:
            raise ValueError("both t and weights are given; the weights say what t is: w2/(w1+w2)")

    def _check_shares(self) -> None:
        density, gamma, epsilon = (self.setting(name) for name in ("density", "gamma", "epsilon"))
        if not 0 < density <= 1:
            raise ValueError(f"density is {density}; it must be above 0 and at most 1")
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma is {gamma}; it must be at least 0 and below 1")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon is {epsilon}; it must be at least 0 and below 1")
