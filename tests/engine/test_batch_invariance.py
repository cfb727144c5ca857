"""A request's bits are its own: alone, among neighbours, chunked, cached, preempted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multiflora.engine.config import CacheConfig, SchedulerConfig
from multiflora.engine.messages import Abort, Submit
from multiflora.engine.request import FinishReason, GenerationRequest
from multiflora.engine.scheduler import StepPlan

from .peft_extras import Extras


@dataclass
class Recorder:
    """Keeps the logits of every sampled token, by request and position."""

    rows: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def attach(self, bench: Any) -> None:
        runner = bench.loop._runner
        compute = runner.logits

        def logits(plan: StepPlan) -> torch.Tensor:
            found = compute(plan)
            sampling = [item for item in plan.items if item.samples]
            for item, row in zip(sampling, found, strict=True):
                key = (item.request.id, len(item.request.tokens))
                if key in self.rows:
                    assert torch.equal(self.rows[key], row), f"{key} changed when recomputed"
                self.rows[key] = row.clone()
            return found

        runner.logits = logits


def _alone(bench: Any, request: GenerationRequest) -> tuple[list[int], Recorder]:
    recorder = Recorder()
    recorder.attach(bench)
    bench.run([request])
    return bench.answers[request.id], recorder


def _assert_same_bits(alone: Recorder, mixed: Recorder, request_id: str) -> None:
    keys = [key for key in alone.rows if key[0] == request_id]
    assert keys
    for key in keys:
        assert torch.equal(alone.rows[key], mixed.rows[key]), key


PROMPT = list(range(7, 50))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", ["rank-16-patterns", None])
def test_logits_bits_do_not_depend_on_neighbours(
    family: str, name: str | None, make_bench: Callable[..., Any]
) -> None:
    bench = make_bench(family, cache=CacheConfig(memory_bytes=8 << 20, prefix_caching=False))
    expected, alone = _alone(bench, bench.request(name, PROMPT, id="own", max_tokens=10))
    bench = make_bench(family, cache=CacheConfig(memory_bytes=8 << 20, prefix_caching=False))
    mixed = Recorder()
    mixed.attach(bench)
    neighbours = [
        bench.request(other, PROMPT[: 3 + 5 * i], id=f"n{i}", max_tokens=4 + i)
        for i, other in enumerate([*bench.digests, None, "rank-3", None])
    ]
    own = bench.request(name, PROMPT, id="own", max_tokens=10)
    bench.run([*neighbours[:4], own, *neighbours[4:]])
    assert bench.answers["own"] == expected
    _assert_same_bits(alone, mixed, "own")


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adjusted_rows_keep_their_bits_among_neighbours_and_in_chunks(
    quantization: str, extras: Callable[[str], Extras], make_bench: Callable[..., Any]
) -> None:
    model, adapters = extras("biased")
    chosen = ("bias-dora", "ia3-most", "head-embedding", "saved-both", "plain")
    settings: dict[str, Any] = {
        "quantization": quantization,
        "cache": CacheConfig(memory_bytes=8 << 20, prefix_caching=False),
        "model": model,
        "adapters": {name: adapters[name] for name in chosen},
    }
    apart, alone = make_bench(**settings), Recorder()
    alone.attach(apart)
    names = [*chosen, None]
    for name in names:
        apart.run([apart.request(name, PROMPT, id=str(name), max_tokens=5)])
    chunks = SchedulerConfig(max_batched_tokens=20, max_num_requests=4)
    for scheduler in (SchedulerConfig(), chunks):
        together, mixed = make_bench(**settings, scheduler=scheduler), Recorder()
        mixed.attach(together)
        own = [together.request(name, PROMPT, id=str(name), max_tokens=5) for name in names]
        others = [together.request(name, PROMPT[:9], max_tokens=9) for name in reversed(names)]
        together.run([*others[:3], *own, *others[3:]])
        for name in names:
            _assert_same_bits(alone, mixed, str(name))
            assert together.answers[str(name)] == apart.answers[str(name)]


@pytest.mark.parametrize("budget", [8, 17, 64])
def test_logits_bits_do_not_depend_on_chunks_or_the_prefix_cache(
    budget: int, make_bench: Callable[..., Any]
) -> None:
    prompt = [3 + i % 300 for i in range(200)]
    bench = make_bench("qwen2", cache=CacheConfig(memory_bytes=8 << 20, prefix_caching=False))
    expected, alone = _alone(bench, bench.request("rank-3", prompt, id="own", max_tokens=6))
    scheduler = SchedulerConfig(max_batched_tokens=budget, max_num_requests=8)
    bench = make_bench("qwen2", scheduler=scheduler)
    mixed = Recorder()
    mixed.attach(bench)
    bench.run([bench.request("rank-3", prompt[:150], id="before"), bench.request(None, prompt)])
    bench.run([bench.request("rank-3", prompt, id="own", max_tokens=6)])
    assert bench.loop.stats().cached_prompt_tokens >= 128
    assert bench.answers["own"] == expected
    _assert_same_bits(alone, mixed, "own")


def test_a_preempted_request_continues_with_the_same_bits(make_bench: Callable[..., Any]) -> None:
    names = ["rank-3", None, "rank-40-down", "rank-1"]
    large = make_bench("llama", cache=CacheConfig(memory_bytes=8 << 20, prefix_caching=False))
    requests = [
        large.request(name, PROMPT[i:], id=f"r{i}", max_tokens=60) for i, name in enumerate(names)
    ]
    alone = Recorder()
    alone.attach(large)
    for request in requests:
        large.run([request])
    # Room for 20 blocks of 16 tokens: four requests of about 100 tokens must take turns.
    bytes_per_token = 2 * 3 * 2 * 32 * 4
    cache = CacheConfig(memory_bytes=bytes_per_token * 16 * 21, prefix_caching=False)
    small = make_bench("llama", cache=cache, max_model_len=256)
    # A version that came late would find room.
    small.run([small.request(name, PROMPT, id=f"first-{name}", max_tokens=1) for name in names])
    mixed = Recorder()
    mixed.attach(small)
    small.run(requests)
    assert small.loop.stats().preemptions > 0
    for request in requests:
        assert small.answers[request.id] == large.answers[request.id]
        _assert_same_bits(alone, mixed, request.id)


_REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["rank-1", "rank-3", "rank-16-patterns", "rank-40-down", None]),
        st.integers(1, 60),
        st.integers(1, 12),
        st.integers(0, 6),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


@pytest.fixture
def pair(make_bench: Callable[..., Any]) -> tuple[Any, Any]:
    """A roomy engine for one request at a time and a cramped one for all together."""
    cramped = SchedulerConfig(max_num_requests=4, max_batched_tokens=32, starvation_steps=8)
    return make_bench("llama"), make_bench("llama", scheduler=cramped)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(specs=_REQUESTS)
def test_any_mix_of_arrivals_and_aborts_equals_the_one_at_a_time_run(
    specs: list[tuple[str | None, int, int, int, bool]], pair: tuple[Any, Any]
) -> None:
    roomy, cramped = pair
    arrivals: dict[int, list[GenerationRequest]] = {}
    aborted = []
    for index, (name, length, count, turn, is_aborted) in enumerate(specs):
        prompt = [5 + (index * 31 + k) % 370 for k in range(length)]
        request = roomy.request(name, prompt, id=f"q{index}", max_tokens=count)
        arrivals.setdefault(turn, []).append(request)
        aborted += [request.id] if is_aborted and index % 3 == 0 else []
    for bench in (roomy, cramped):
        for record in (bench.answers, bench.reasons, bench.errors):
            record.clear()
    requests = [request for turn in sorted(arrivals) for request in arrivals[turn]]
    for turn in range(8):
        cramped.send(*(Submit(request) for request in arrivals.get(turn, [])))
        cramped.turn()
        cramped.send(*(Abort(i) for i in aborted if turn == 7))
    cramped.run([])
    for _ in range(2000):
        if len(cramped.reasons) == len(requests):
            break
        cramped.turn()
    for request in requests:
        roomy.run([request])
        expected, got = roomy.answers[request.id], cramped.answers.get(request.id, [])
        if cramped.reasons[request.id] is FinishReason.ABORT:
            assert got == expected[: len(got)]
        else:
            assert got == expected
    stats = cramped.loop.stats()
    assert (stats.kv_blocks_used, stats.adapter_leases, stats.num_running) == (0, 0, 0)
