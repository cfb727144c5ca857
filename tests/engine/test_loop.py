"""The loop keeps its promises whatever is thrown at it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from multiflora.engine.background import NoTraining, ServingLoad
from multiflora.engine.config import CacheConfig, SchedulerConfig
from multiflora.engine.messages import (
    Abort,
    GetStats,
    LoadVersion,
    Stats,
    Submit,
    UnloadVersion,
    VersionFailed,
    VersionLoaded,
)
from multiflora.engine.request import AdapterShare, FinishReason
from multiflora.engine.scheduler import StepPlan

PROMPT = list(range(10, 40))


def assert_idle(bench: Any) -> None:
    stats = bench.loop.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert (stats.kv_blocks_used, stats.adapter_leases) == (0, 0)


def test_an_abort_frees_everything_within_one_turn(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bench.send(Submit(bench.request("rank-3", PROMPT, id="r", max_tokens=400)))
    while not bench.answers.get("r"):
        bench.turn()
    assert bench.loop.stats().kv_blocks_used > 0
    bench.send(Abort("r"))
    bench.turn()
    assert bench.reasons["r"] is FinishReason.ABORT
    assert_idle(bench)


def test_aborting_while_waiting_or_loading_or_twice_is_harmless(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(scheduler=SchedulerConfig(max_num_requests=1))
    requests = [bench.request(n, PROMPT, id=str(i)) for i, n in enumerate((None, "rank-1", None))]
    bench.send(*(Submit(r) for r in requests), Abort("1"), Abort("1"), Abort("nobody"))
    bench.turn()
    assert bench.reasons["1"] is FinishReason.ABORT
    bench.send(Abort("2"))
    while "0" not in bench.reasons:
        bench.turn()
    assert bench.reasons["0"] is FinishReason.LENGTH
    assert_idle(bench)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": ()}, "invalid_request"),
        ({"prompt": (1, 384)}, "invalid_token"),
        ({"prompt": (-1,)}, "invalid_token"),
        ({"prompt": tuple([5] * 510)}, "context_length_exceeded"),
        ({"adapters": (AdapterShare("0" * 64),)}, "unknown_version"),
        ({"adapters": (AdapterShare("../../x"),)}, "unknown_version"),
    ],
)
def test_a_request_that_cannot_run_ends_with_its_reason(
    change: dict[str, Any], code: str, make_bench: Callable[..., Any]
) -> None:
    bench = make_bench()
    bench.run([replace(bench.request(None, PROMPT, id="bad"), **change)])
    assert bench.reasons["bad"] is FinishReason.ERROR
    assert bench.errors["bad"].error_code == code
    bench.run([bench.request(None, PROMPT, id="good")])
    assert bench.reasons["good"] is FinishReason.LENGTH
    assert_idle(bench)


def test_a_full_queue_refuses_and_recovers(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(scheduler=SchedulerConfig(max_num_requests=1, max_queued_requests=2))
    bench.run([bench.request(None, PROMPT, id=str(i)) for i in range(6)])
    codes = [event.error_code for event in bench.errors.values()]
    assert codes == ["queue_full"] * 4
    assert_idle(bench)


def test_the_models_end_token_stops_unless_ignored(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    free = bench.request(None, PROMPT, id="free", max_tokens=10)
    bench.run([free])
    end = bench.answers["free"][4]
    first = bench.answers["free"].index(end)
    bench.loop._eos_token_ids = (end,)
    bench.run([bench.request(None, PROMPT, id="stop", max_tokens=10, ignore_eos=False)])
    assert bench.answers["stop"] == bench.answers["free"][: first + 1]
    assert bench.reasons["stop"] is FinishReason.STOP
    bench.run([bench.request(None, PROMPT, id="go", max_tokens=10)])
    assert bench.answers["go"] == bench.answers["free"]


def test_seeded_sampling_is_the_same_among_neighbours(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 11, "max_tokens": 12}
    bench.run([bench.request("rank-3", PROMPT, id="alone", **sampling)])
    neighbours = [bench.request(n, PROMPT[:9], id=f"n{n}") for n in ("rank-1", None)]
    bench.run([*neighbours, bench.request("rank-3", PROMPT, id="mixed", **sampling)])
    assert bench.answers["mixed"] == bench.answers["alone"]
    bench.run([bench.request("rank-3", PROMPT, id="other", **{**sampling, "seed": 12})])
    assert bench.answers["other"] != bench.answers["alone"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a kernel of this request fails at /some/path"),
        torch.OutOfMemoryError("no room for /some/path"),
        MemoryError("/some/path"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_request_that_breaks_the_step_ends_alone(
    make_bench: Callable[..., Any], error: Exception
) -> None:
    bench = make_bench()
    requests = [bench.request(None, PROMPT[i:], id=str(i), max_tokens=6) for i in range(3)]
    bench.run(requests)
    expected = dict(bench.answers)
    bench.answers.clear()
    bench.reasons.clear()
    compute = bench.loop._runner.logits

    def fragile(plan: StepPlan) -> torch.Tensor:
        for item in plan.items:
            if item.request.id == "1" and item.request.num_generated == 2:
                raise error
        return compute(plan)

    bench.loop._runner.logits = fragile
    bench.run(requests)
    assert bench.answers["0"] == expected["0"]
    assert bench.answers["2"] == expected["2"]
    assert bench.reasons["1"] is FinishReason.ERROR
    assert "/some/path" not in (bench.errors["1"].error or "")
    assert_idle(bench)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError("x")], ids=repr)
def test_out_of_memory_in_one_load_fails_that_adapter_only(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench = make_bench()
    reader = bench.loop._residency._loader._reader
    read, bad = reader.read, bench.digests["rank-1"]

    def fragile(planned: Any) -> Any:
        if planned.digest == bad:
            raise error
        return read(planned)

    reader.read = fragile
    names = {"lost": "rank-1", "kept": "rank-3", "base": None}
    bench.run([bench.request(name, PROMPT, id=key) for key, name in names.items()])
    assert bench.reasons["lost"] is FinishReason.ERROR
    assert (bench.reasons["kept"], bench.reasons["base"]) == (FinishReason.LENGTH,) * 2
    assert bench.errors["lost"].error_code == "load_failed"
    reader.read = read
    # A version that failed is left alone for a second.
    monkeypatch.setattr(bench.loop._residency._failures, "_clock", lambda: time.monotonic() + 2)
    bench.run([bench.request("rank-1", PROMPT, id="again")])
    assert bench.reasons["again"] is FinishReason.LENGTH
    assert_idle(bench)


def test_a_row_that_is_not_finite_ends_alone(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    compute = bench.loop._runner.logits

    def poisoned(plan: StepPlan) -> torch.Tensor:
        rows = compute(plan).clone()
        for index, item in enumerate(item for item in plan.items if item.samples):
            if item.request.id == "bad":
                rows[index, 3] = float("nan")
        return rows

    bench.loop._runner.logits = poisoned
    bench.run([bench.request(None, PROMPT, id=name) for name in ("bad", "good")])
    assert bench.reasons == {"bad": FinishReason.ERROR, "good": FinishReason.LENGTH}
    assert "not finite" in (bench.errors["bad"].error or "")


def test_versions_load_ahead_and_unload_when_idle(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    digest = bench.digests["rank-3"]
    bench.send(LoadVersion(digest), LoadVersion("0" * 64))
    found: list[Any] = []
    for _ in range(500):
        bench.loop.turn()
        found += [r for r in bench.reports if isinstance(r, VersionLoaded | VersionFailed)]
        bench.reports.clear()
        if len(found) == 2:
            break
    assert VersionLoaded(digest) in found
    assert [r.code for r in found if isinstance(r, VersionFailed)] == ["unknown_version"]
    assert bench.loop.stats().resident_versions == (digest,)
    bench.send(UnloadVersion(digest))
    bench.turn()
    assert bench.loop.stats().resident_versions == ()
    bench.run([bench.request("rank-3", PROMPT, id="again")])
    assert bench.reasons["again"] is FinishReason.LENGTH


def test_counters_add_up(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(cache=CacheConfig(memory_bytes=8 << 20))
    bench.run([bench.request(None, PROMPT, id="a"), bench.request("rank-1", PROMPT, id="b")])
    bench.run([bench.request(None, PROMPT, id="c")])
    bench.send(GetStats())
    bench.loop.turn()
    (stats,) = [r.stats for r in bench.reports if isinstance(r, Stats)]
    assert stats.generated_tokens == 3 * 8
    assert stats.cached_prompt_tokens == 16
    assert stats.prompt_tokens == 3 * len(PROMPT) - 16
    assert stats.requests_finished == {"length": 3}
    assert stats.steps > 0
    assert stats.step_seconds > 0
    assert stats.step.requests.num_values == stats.steps
    assert sum(found.total for found in stats.step.seconds.values()) == stats.step_seconds
    assert stats.step.tokens == {"prefill": stats.prompt_tokens, "decode": 3 * 7}
    assert stats.step.needed_ranks == stats.step.computed_ranks > 0
    assert {s: found.num_values for s, found in stats.adapter_load_seconds.items()} == {
        "plan": 1,
        "read": 1,
        "copy": 1,
    }
    assert set(stats.version_bytes) == {bench.digests["rank-1"]}
    assert stats.machine.device_bytes_total > stats.machine.device_bytes_used > 0


def test_waiting_and_running_are_told_by_version(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(scheduler=SchedulerConfig(max_num_requests=1))
    requests = [bench.request(n, PROMPT, id=str(i)) for i, n in enumerate((None, None, "rank-1"))]
    bench.send(*map(Submit, requests))
    bench.turn()
    queues = bench.loop.stats().version_queues
    assert (queues[""].num_running, queues[""].num_waiting) == (1, 1)
    waiting = queues[bench.digests["rank-1"]]
    assert (waiting.num_running, waiting.num_waiting) == (0, 1)
    assert waiting.oldest_seconds > 0
    while len(bench.reasons) < len(requests):
        bench.turn()
    assert not bench.loop.stats().version_queues


def test_the_first_token_tells_how_the_time_before_it_was_spent(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench()
    started = time.perf_counter()
    bench.send(Submit(bench.request("rank-3", PROMPT, id="r")))
    events = []
    while not any(event.finish_reason for event in events):
        bench.loop.turn()
        events += [e for report in bench.reports for e in getattr(report, "events", ())]
        bench.reports.clear()
    first, *rest = (event.stages for event in events)
    assert rest == [None] * 7
    assert first is not None
    assert 0 < first.load <= first.queue
    assert first.prefill > 0
    assert first.queue + first.prefill < time.perf_counter() - started


@pytest.mark.parametrize(("num_prompt", "count"), [(255, 1), (1, 255), (120, 136)])
def test_the_longest_legal_request_fits_the_smallest_cache(
    num_prompt: int, count: int, make_bench: Callable[..., Any]
) -> None:
    bytes_per_block = 2 * 3 * 2 * 32 * 4 * 16
    bench = make_bench(cache=CacheConfig(memory_bytes=17 * bytes_per_block))
    assert bench.loop.info.max_model_len == 256
    longest = bench.request(None, [5] * num_prompt, id="longest", max_tokens=count)
    bench.run([longest, bench.request(None, PROMPT, id="next")], max_turns=1500)
    assert bench.reasons == {"longest": FinishReason.LENGTH, "next": FinishReason.LENGTH}
    assert len(bench.answers["longest"]) == count


def test_loading_again_takes_an_unload_back(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    digest = bench.digests["rank-3"]
    bench.send(Submit(bench.request("rank-3", PROMPT, id="r", max_tokens=30)))
    while not bench.answers.get("r"):
        bench.turn()
    bench.send(UnloadVersion(digest), LoadVersion(digest))
    while "r" not in bench.reasons:
        bench.turn()
    bench.turn()
    assert bench.loop.stats().resident_versions == (digest,)


class Busy(NoTraining):
    """Training that runs a quantum after every step, as ``throughput`` may."""

    def turn(self, load: ServingLoad) -> float:
        return 0.0


def test_a_step_after_a_quantum_takes_no_prompts_but_the_next_one_does(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(scheduler=SchedulerConfig(max_batched_tokens=16, max_num_requests=4))
    bench.loop._background = Busy("a test", lambda report: None)
    steps: list[list[int]] = []
    run = bench.loop._run

    def noting(plan: StepPlan) -> Any:
        steps.append(sorted(item.count for item in plan.items))
        return run(plan)

    bench.loop._run = noting
    bench.run([bench.request(None, PROMPT, id=str(number), max_tokens=30) for number in range(3)])
    assert all(reason is FinishReason.LENGTH for reason in bench.reasons.values())
    mixed = [place for place, counts in enumerate(steps) if counts[0] == 1 and counts[-1] > 1]
    assert mixed
    for place in mixed:
        assert set(steps[place - 1]) == {1}, "a step before it was brief"
