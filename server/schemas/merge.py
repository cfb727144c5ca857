"""What ``POST /v1/adapters/merge`` is told, and the job that it answers with."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from multiflora.adapters.merging.depth import Curve, Filter
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import Dtype, OnAntiparallel, Recipe
from multiflora.engine.errors import RequestRejected

from ..background_job import BackgroundJob
from .body import RequestBody

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class MergeSource(BaseModel):
    """``version`` None is the one that the name points at."""

    model_config = _STRICT

    adapter: str = Field(max_length=128)
    weight: float | None = Field(None, allow_inf_nan=False)
    version: str | None = Field(None, max_length=64)


class MergeFilter(BaseModel):
    """``t`` for modules whose path contains ``match``."""

    model_config = _STRICT

    match: str = Field(min_length=1, max_length=256)
    t: float | list[float]


class MergeBody(RequestBody):
    """Names and settings as on the command line.

    ``replace`` publishes a new version of a name that exists. ``background`` answers at once.
    """

    name: str = Field(max_length=200)
    sources: list[MergeSource] = Field(min_length=1, max_length=16)
    method: str = Field("linear", max_length=64)
    t: float | list[float] | None = None
    filters: list[MergeFilter] | None = Field(None, max_length=64)
    density: float | None = None
    gamma: float | None = None
    epsilon: float | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    sequential: bool | None = None
    on_antiparallel: OnAntiparallel | None = None
    rank: int | str | None = None
    dtype: Dtype | None = None
    allow_different_bases: bool = False
    background: bool = False
    replace: bool = False

    def recipe(self) -> Recipe:
        """Raises ``RequestRejected`` for settings that make no sense together."""
        filters = tuple(Filter(one.match, _curve(one.t)) for one in self.filters or ())
        try:
            return Recipe(
                num_parents=len(self.sources),
                method=self.method,
                weights=self._weights(),
                t=None if self.t is None else _curve(self.t),
                filters=filters or None,
                density=self.density,
                gamma=self.gamma,
                epsilon=self.epsilon,
                seed=self.seed,
                sequential=self.sequential,
                on_antiparallel=self.on_antiparallel,
                rank=None if self.rank is None else RankPolicy.parse(str(self.rank)),
                dtype=self.dtype,
                allow_different_bases=self.allow_different_bases,
            )
        except ValueError as error:
            raise RequestRejected(str(error)) from None

    def _weights(self) -> tuple[float, ...] | None:
        given = [source.weight for source in self.sources if source.weight is not None]
        if given and len(given) != len(self.sources):
            raise ValueError("some sources have a weight and some do not; give all or none")
        return tuple(given) or None


def _curve(t: float | list[float]) -> Curve:
    try:
        return Curve(tuple(t) if isinstance(t, list) else (t,))
    except ValueError as error:
        raise RequestRejected(str(error), param="t") from None


def merge_object(job: BackgroundJob) -> dict[str, Any]:
    """``progress`` is 1 when all modules are merged; ``error`` is as in an answer that failed."""
    return {
        "id": job.id,
        "object": "adapter.merge",
        "name": job.name,
        "status": job.status,
        "progress": job.progress,
        "created": job.created,
        "error": job.error,
        "adapter": job.result,
    }
