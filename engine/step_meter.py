"""Counts what steps do, and when requests get from one stage to the next. Imports no torch."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Final

from multiflora.adapters.histogram import STEP_SECONDS, Histogram

from .active_request import ActiveRequest
from .request import StageSeconds, StepStats
from .scheduler import ScheduledRequest, StepPlan

_PREFILL: Final = "prefill"
_DECODE: Final = "decode"
_MIXED: Final = "mixed"
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class StepMeter:
    """``ranks`` are those of every resident version's slices: their sum, and what kernels compute
    of it. ``tile_rows`` is how many rows they compute at least.
    """

    def __init__(
        self,
        ranks: Mapping[str, tuple[int, int]],
        *,
        tile_rows: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ranks = ranks
        self._tile_rows = tile_rows
        self._clock = clock
        self._loading: list[ActiveRequest] = []
        self._seconds = {p: Histogram(STEP_SECONDS) for p in (_PREFILL, _DECODE, _MIXED)}
        self._requests = Histogram(_COUNTS)
        self._versions = Histogram(_COUNTS)
        self._tokens: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._needed_ranks = 0
        self._computed_ranks = 0

    def submit(self, request: ActiveRequest) -> None:
        """Begin to watch for the versions of ``request``."""
        self._loading.append(request)

    def note_loads(self, is_ready: Callable[[str], bool]) -> None:
        """Note whose versions have come to the device."""
        if not self._loading:
            return
        still = []
        for request in self._loading:
            if all(is_ready(digest) for digest in request.digests):
                request.milestones.loaded = self._clock()
            elif request.milestones.admitted is None:
                still.append(request)
        self._loading = still

    def forget(self, request: ActiveRequest) -> None:
        if request in self._loading:
            self._loading.remove(request)

    def begin(self, plan: StepPlan) -> None:
        """Note who is admitted by ``plan``."""
        now = self._clock()
        for item in plan.items:
            milestones = item.request.milestones
            if milestones.admitted is None:
                milestones.admitted = now
                milestones.loaded = milestones.loaded or now

    def stages(self, request: ActiveRequest) -> StageSeconds:
        """Of a request that has been admitted and has its first token."""
        found = request.milestones
        assert found.admitted is not None
        assert found.loaded is not None
        return StageSeconds(
            queue=found.admitted - found.submitted,
            load=found.loaded - found.submitted,
            prefill=self._clock() - found.admitted,
        )

    def end(self, plan: StepPlan, seconds: float) -> None:
        """Take in a step that ran."""
        num_decoding = sum(map(_is_decode, plan.items))
        mixed = _MIXED if num_decoding else _PREFILL
        self._seconds[_DECODE if num_decoding == len(plan.items) else mixed].observe(seconds)
        self._requests.observe(len(plan.items))
        self._versions.observe(len({d for item in plan.items for d in item.request.digests}))
        for item in plan.items:
            self._tokens[_DECODE if _is_decode(item) else _PREFILL] += item.count
        for shares, items in groupby(plan.items, key=lambda item: item.request.request.adapters):
            self._count_rows([share.digest for share in shares], sum(item.count for item in items))

    def _count_rows(self, digests: list[str], num_rows: int) -> None:
        kind = "base" if not digests else "adapter" if len(digests) == 1 else "blend"
        self._rows[kind] += num_rows
        tiles = -(-num_rows // self._tile_rows)
        for digest in digests:
            needed, computed = self._ranks.get(digest, (0, 0))
            self._needed_ranks += num_rows * needed
            self._computed_ranks += tiles * self._tile_rows * computed

    def stats(self, *, graph_replays: int = 0, padding_rows: int = 0) -> StepStats:
        return StepStats(
            seconds={phase: found.snapshot() for phase, found in self._seconds.items()},
            tokens=dict(self._tokens),
            rows=dict(self._rows),
            requests=self._requests.snapshot(),
            versions=self._versions.snapshot(),
            needed_ranks=self._needed_ranks,
            computed_ranks=self._computed_ranks,
            graph_replays=graph_replays,
            padding_rows=padding_rows,
        )


def _is_decode(item: ScheduledRequest) -> bool:
    return item.start >= item.request.num_prompt
