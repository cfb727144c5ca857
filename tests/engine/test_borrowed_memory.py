"""Adapters overflow into idle KV cache and make room for requests again, with the same answers."""

from collections.abc import Callable
from typing import Any

import pytest

from multiflora.adapters.tier import Tier
from multiflora.engine.messages import Submit

from .peft_extras import Extras

PROMPT = list(range(10, 40))
NAMES = ("rank-1", "rank-3", "rank-8-rslora")


def ask(bench: Any, names: tuple[str, ...], turn: str, count: int = 8) -> dict[str, list[int]]:
    """The answers of one request per name, all at once."""
    requests = {n: bench.request(n, PROMPT, id=f"{turn} {n}", max_tokens=count) for n in names}
    bench.run(requests.values())
    return {name: bench.answers[request.id] for name, request in requests.items()}


def shrink(bench: Any, *names: str) -> None:
    """Leave the adapters memory of their own for ``names`` alone."""
    slots = bench.loop._residency.slots
    slots.capacity_bytes = sum(slots.bytes_of(bench.digests[name]) for name in names)


def test_versions_beyond_the_budget_borrow_idle_blocks_and_answer_alike(
    make_bench: Callable[..., Any],
) -> None:
    expected = ask(make_bench(), NAMES, "reference")
    bench = make_bench()
    ask(bench, NAMES[2:], "probe")
    shrink(bench, NAMES[2])
    assert ask(bench, NAMES, "first") == expected
    stats = bench.loop.stats()
    assert stats.adapter_borrowed_bytes > 0
    assert stats.adapter_evictions == 0
    assert set(stats.resident_versions) == {bench.digests[name] for name in NAMES}
    assert ask(bench, NAMES, "again") == expected
    assert bench.loop.stats().adapter_copies == stats.adapter_copies, "nothing was moved"
    assert stats.kv_blocks_used == 0


def test_requests_get_lent_blocks_back_and_nobody_waits_for_idle_versions(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench()
    expected = ask(bench, NAMES, "probe")
    for name in NAMES:
        bench.loop._residency.unload(bench.digests[name])
    shrink_to_nothing_but(bench, NAMES[2])
    assert ask(bench, NAMES, "first") == expected
    pool = bench.loop._pool
    lent = pool.num_lent
    assert lent
    blocks = pool.allocate(pool.num_free)
    assert blocks
    assert ask(bench, NAMES[2:], "crowded")[NAMES[2]] == expected[NAMES[2]]
    assert pool.num_lent < lent
    assert bench.loop.stats().preemptions == 0
    pool.release(blocks)
    assert ask(bench, NAMES, "later") == expected


def shrink_to_nothing_but(bench: Any, name: str) -> None:
    ask(bench, (name,), f"size of {name}")
    shrink(bench, name)


def test_a_running_request_keeps_its_borrowed_version(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    expected = ask(bench, NAMES, "probe", 60)
    for name in NAMES:
        bench.loop._residency.unload(bench.digests[name])
    shrink_to_nothing_but(bench, NAMES[2])
    bench.send(*(Submit(bench.request(n, PROMPT, id=n, max_tokens=60)) for n in NAMES))
    while not all(bench.answers.get(name) for name in NAMES):
        bench.turn()
    assert bench.loop.stats().adapter_borrowed_bytes
    assert not bench.loop._residency.call_in()
    while not all(name in bench.reasons for name in NAMES):
        bench.turn()
    assert {name: bench.answers[name] for name in NAMES} == expected


def test_a_borrowed_version_that_is_pinned_moves_to_memory_of_its_own(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench()
    expected = ask(bench, NAMES, "probe")
    for name in NAMES:
        bench.loop._residency.unload(bench.digests[name])
    shrink_to_nothing_but(bench, NAMES[2])
    ask(bench, NAMES, "first")
    digest = bench.digests["rank-1"]
    slots = bench.loop._residency.slots
    assert slots.is_borrowed(digest)
    bench.loop._residency.pin(digest)
    for _ in range(1000):
        bench.turn()
        if digest in slots.pinned and slots.is_ready(digest):
            break
    assert bench.loop._residency.tier_of(digest) is Tier.DEVICE
    assert not slots.is_borrowed(digest)
    assert ask(bench, NAMES, "later") == expected


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_versions_that_do_more_than_lora_borrow_and_answer_alike(
    extras: Callable[[str], Extras], make_bench: Callable[..., Any]
) -> None:
    model, folders = extras("biased")
    names = ("dora", "bias-dora", "lora-bias", "ia3")
    adapters = {name: folders[name] for name in names}
    expected = ask(make_bench(model=model, adapters=adapters), names, "reference")
    assert len(set(map(tuple, expected.values()))) == len(names)
    bench = make_bench(model=model, adapters=adapters)
    ask(bench, names[:1], "probe")
    shrink(bench, names[0])
    assert ask(bench, names, "first") == expected
    assert bench.loop._residency.slots.is_borrowed(bench.digests["bias-dora"])
    assert ask(bench, names, "again") == expected
