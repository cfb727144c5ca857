"""A slow, cold or broken version costs nobody else; coming back from the host reads no file."""

import threading
import time
from collections.abc import Callable
from typing import Any

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.loan import NoLender
from multiflora.adapters.tier import Tier
from multiflora.adapters.version_reader import HostVersion, PlannedVersion
from multiflora.engine.config import SchedulerConfig
from multiflora.engine.messages import (
    Adapters,
    GetAdapters,
    LoadVersion,
    Pin,
    Submit,
    UnloadVersion,
    Unpin,
    VersionPinned,
)
from multiflora.engine.request import AdapterShare, FinishReason, GenerationRequest

PROMPT = list(range(10, 40))


class Gate:
    """Between an engine and its reader: versions in ``slow`` wait, those in ``broken`` fail."""

    def __init__(self, bench: Any) -> None:
        loader = bench.loop._residency._loader
        self._reader = loader._reader
        self.slow: set[str] = set()
        self.broken: set[str] = set()
        self.reads: list[str] = []
        self.opened = threading.Event()
        loader._reader = self

    def plan(self, digest: str) -> PlannedVersion:
        return self._reader.plan(digest)

    def read(self, planned: PlannedVersion) -> HostVersion:
        self.reads.append(planned.digest)
        if planned.digest in self.broken:
            raise AdapterRejected("load_failed", "the disk is on fire")
        if planned.digest in self.slow:
            assert self.opened.wait(30)
        return self._reader.read(planned)


def budget_for(bench: Any, *names: str) -> int:
    """Let the device hold just the versions of ``names`` together; returns those bytes.

    The KV cache lends nothing.
    """
    slots = bench.loop._residency.slots
    bench.loop._residency._device._lender = NoLender()
    bench.run(bench.request(name, PROMPT, id=f"probe {name}", max_tokens=1) for name in names)
    slots.capacity_bytes = sum(slots.bytes_of(bench.digests[name]) for name in names)
    for name in names:
        bench.send(UnloadVersion(bench.digests[name]))
    bench.turn()
    assert slots.used_bytes == 0
    return slots.capacity_bytes


def test_a_slow_version_delays_neither_a_stream_nor_another_load(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench()
    gate = Gate(bench)
    gate.slow.add(bench.digests["rank-3"])
    bench.send(Submit(bench.request("rank-1", PROMPT, id="stream", max_tokens=400)))
    while not bench.answers.get("stream"):
        bench.turn()
    bench.send(Submit(bench.request("rank-3", PROMPT, id="slow")))
    bench.run([bench.request("rank-8-rslora", PROMPT, id="other")])
    assert bench.reasons["other"] is FinishReason.LENGTH
    for _ in range(10):
        before = len(bench.answers["stream"])
        bench.turn()
        assert len(bench.answers["stream"]) == before + 1, "every turn is a token"
    assert "slow" not in bench.reasons
    gate.opened.set()
    while "slow" not in bench.reasons:
        bench.turn()
    assert bench.reasons["slow"] is FinishReason.LENGTH


def test_coming_back_from_host_memory_reads_no_file(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    budget_for(bench, "rank-3")
    gate = Gate(bench)
    answers = []
    for turn, name in enumerate(("rank-3", "rank-1", "rank-3", "rank-1")):
        bench.run([bench.request(name, PROMPT, id=str(turn))])
        answers.append(bench.answers[str(turn)])
        if turn == 1:
            assert len(gate.reads) == 2
    assert len(gate.reads) == 2
    assert (answers[0], answers[1]) == (answers[2], answers[3])
    stats = bench.loop.stats()
    assert stats.adapter_evictions == 3
    assert stats.adapter_arrivals == {"disk": 3, "host": 2}


def test_a_failed_load_ends_its_requests_only_and_can_be_tried_again(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench()
    gate = Gate(bench)
    gate.broken.add(bench.digests["rank-3"])
    bad = [bench.request("rank-3", PROMPT, id=f"bad{n}") for n in range(3)]
    bench.run([*bad, bench.request("rank-1", PROMPT, id="good")])
    assert {id for id, reason in bench.reasons.items() if reason is FinishReason.ERROR} == {
        "bad0",
        "bad1",
        "bad2",
    }
    assert len(gate.reads) == 2, "three requests are one load"
    gate.broken.clear()
    bench.send(LoadVersion(bench.digests["rank-3"]))
    bench.run([bench.request("rank-3", PROMPT, id="again")])
    assert bench.reasons["again"] is FinishReason.LENGTH


def blend(bench: Any, id: str, *names: str) -> GenerationRequest:
    shares = tuple(AdapterShare(bench.digests[name], 0.5) for name in names)
    return GenerationRequest(
        id=id, prompt=tuple(PROMPT), sampling=bench.request(None, PROMPT).sampling, adapters=shares
    )


def test_a_blend_finds_its_parents_in_three_tiers(make_bench: Callable[..., Any]) -> None:
    parents = ("rank-1", "rank-3", "rank-4-layers")
    bench = make_bench()
    bench.run([blend(bench, "resident", *parents)])
    slots = bench.loop._residency.slots
    slots.capacity_bytes = slots.used_bytes
    for name in parents:
        bench.send(UnloadVersion(bench.digests[name]))
    bench.turn()
    # One leaves for the host again, one stays on the device, one is on disk.
    bench.run([bench.request("rank-3", PROMPT, id="device")])
    residency = bench.loop._residency
    residency.start_load(bench.digests["rank-1"])
    while residency.is_loading:
        bench.turn()
    version = residency._device._shared[bench.digests["rank-1"]]
    residency._device.remove(bench.digests["rank-1"])
    assert residency.host.reserve(bench.digests["rank-1"], version.host_bytes)
    residency.host.fill(bench.digests["rank-1"], version)
    tiers = [residency.tier_of(bench.digests[name]) for name in parents]
    assert tiers == [Tier.HOST, Tier.DEVICE, Tier.DISK]
    bench.run([blend(bench, "mixed", *parents)])
    assert bench.answers["mixed"] == bench.answers["resident"]


def test_a_pinned_version_stays_and_is_reported(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    pinned, other = bench.digests["rank-3"], bench.digests["rank-1"]
    budget_for(bench, "rank-3")
    bench.send(Pin(pinned))
    reports: list[Any] = []
    deadline = time.monotonic() + 20
    while not any(isinstance(report, VersionPinned) for report in reports):
        bench.loop.turn()
        reports += bench.reports
        bench.reports.clear()
        assert time.monotonic() < deadline
    bench.send(UnloadVersion(pinned), GetAdapters())
    bench.loop.turn()
    (adapters,) = [report for report in bench.reports if isinstance(report, Adapters)]
    assert adapters.tiers[pinned] is Tier.DEVICE
    assert bench.loop.stats().pinned_versions == (pinned,)
    bench.run([bench.request("rank-1", PROMPT, id="no room")])
    assert bench.errors["no room"].error_code == "no_room_beside_pinned"
    bench.send(Unpin(pinned))
    bench.run([bench.request("rank-1", PROMPT, id="room")])
    assert bench.reasons["room"] is FinishReason.LENGTH
    assert bench.loop.stats().resident_versions == (other,)


def test_versions_of_waiting_requests_are_read_before_there_is_room(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(scheduler=SchedulerConfig(max_num_requests=1))
    bench.send(Submit(bench.request(None, PROMPT, id="running", max_tokens=400)))
    while not bench.answers.get("running"):
        bench.turn()
    bench.send(Submit(bench.request("rank-3", PROMPT, id="waiting")))
    for _ in range(300):
        bench.turn()
        if bench.loop._residency.tier_of(bench.digests["rank-3"]) is Tier.DEVICE:
            break
    assert "running" not in bench.reasons
    assert bench.loop._residency.tier_of(bench.digests["rank-3"]) is Tier.DEVICE
