"""Steps are counted by what they held, and requests by where they waited."""

from dataclasses import dataclass, field

import pytest

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams, StageSeconds
from multiflora.engine.scheduler import ScheduledRequest, StepPlan
from multiflora.engine.step_meter import StepMeter

PROMPT = (5, 6, 7, 8)


@dataclass
class Bench:
    """A meter whose clock stands still unless it is told to go on."""

    now: float = 100.0
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)
    tile_rows: int = 1

    def __post_init__(self) -> None:
        self.meter = StepMeter(self.ranks, tile_rows=self.tile_rows, clock=lambda: self.now)

    def submit(self, *digests: str) -> ActiveRequest:
        shares = tuple(AdapterShare(digest) for digest in digests)
        sampling = SamplingParams(max_tokens=4)
        request = GenerationRequest(id="r", prompt=PROMPT, sampling=sampling, adapters=shares)
        active = ActiveRequest(request, 0)
        active.milestones.submitted = self.now
        self.meter.submit(active)
        return active


def prefill(request: ActiveRequest, count: int = 4) -> ScheduledRequest:
    return ScheduledRequest(request, 0, count, samples=True)


def decode(request: ActiveRequest) -> ScheduledRequest:
    return ScheduledRequest(request, len(PROMPT), 1, samples=True)


def plan(*items: ScheduledRequest) -> StepPlan:
    return StepPlan(items, ())


def test_steps_are_told_apart_by_what_they_hold() -> None:
    bench = Bench()
    a, b = bench.submit("a"), bench.submit()
    bench.meter.end(plan(prefill(a), prefill(b, 2)), 0.5)
    bench.meter.end(plan(decode(a), prefill(b, 2)), 0.25)
    bench.meter.end(plan(decode(a), decode(b)), 0.125)
    stats = bench.meter.stats()
    assert {phase: found.total for phase, found in stats.seconds.items()} == {
        "prefill": 0.5,
        "mixed": 0.25,
        "decode": 0.125,
    }
    assert stats.tokens == {"prefill": 8, "decode": 3}
    assert stats.rows == {"adapter": 6, "base": 5}
    assert (stats.requests.num_values, stats.requests.total) == (3, 6)
    assert (stats.versions.num_values, stats.versions.total) == (3, 3)


def test_what_tiles_compute_for_nobody_is_counted() -> None:
    bench = Bench(ranks={"a": (8, 16), "b": (40, 48)}, tile_rows=16)
    rows = [bench.submit("a"), bench.submit("a"), bench.submit("b"), bench.submit("a", "b")]
    bench.meter.end(plan(*map(decode, rows)), 0.1)
    stats = bench.meter.stats()
    assert stats.rows == {"adapter": 3, "blend": 1}
    # Two rows of a, one of b, one of the blend of both.
    assert stats.needed_ranks == 2 * 8 + 40 + (8 + 40)
    assert stats.computed_ranks == 16 * (16 + 48 + (16 + 48))


def test_without_tiles_nothing_is_computed_for_nobody() -> None:
    bench = Bench(ranks={"a": (8, 8)})
    bench.meter.end(plan(prefill(bench.submit("a"), 3)), 0.1)
    stats = bench.meter.stats()
    assert stats.needed_ranks == stats.computed_ranks == 24


def test_a_request_waits_for_its_version_then_for_its_turn_then_for_its_prompt() -> None:
    bench = Bench()
    request = bench.submit("a", "b")
    here = {"a"}
    bench.now += 1
    bench.meter.note_loads(here.__contains__)
    bench.now += 2
    here.add("b")
    bench.meter.note_loads(here.__contains__)
    bench.now += 4
    bench.meter.begin(plan(prefill(request)))
    bench.now += 8
    bench.meter.begin(plan(decode(request)))
    assert bench.meter.stages(request) == StageSeconds(queue=7, load=3, prefill=8)


def test_a_request_without_versions_waits_for_none() -> None:
    bench = Bench()
    request = bench.submit()
    bench.meter.note_loads(lambda digest: False)
    bench.now += 2
    bench.meter.begin(plan(prefill(request)))
    assert bench.meter.stages(request) == StageSeconds(queue=2, load=0, prefill=0)


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_request_that_ended_is_watched_no_more(is_ready: bool) -> None:
    bench = Bench()
    request = bench.submit("a")
    bench.meter.forget(request)
    bench.meter.forget(request)
    bench.now += 1
    bench.meter.note_loads(lambda digest: is_ready)
    assert request.milestones.loaded is None
