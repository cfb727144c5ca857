"""What a LoRA-aware endpoint picker reads and concludes, replayed on real pages."""

from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from multiflora.adapters.canary import Canary
from multiflora.adapters.entry import AdapterEntry
from multiflora.engine.request import EngineStats, VersionQueue
from multiflora.server.metric.board import Board
from multiflora.server.metric.exposition import Exposition
from multiflora.server.metric.router_family import LoraLoad, Router, lora_load

NOW = 1_800_000_000.0
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Reading:
    """One scrape, as the picker keeps it."""

    waiting: float
    running: float
    kv_use: float
    max_lora: int
    running_adapters: frozenset[str]
    waiting_adapters: frozenset[str]

    def score(self, model: str) -> float:
        """How much a request for ``model`` belongs here."""
        if model in self.running_adapters:
            return 1.0
        if len(self.running_adapters) + len(self.waiting_adapters) < self.max_lora:
            return 0.8
        return 0.6 if model in self.waiting_adapters else 0.0


def read(text: str) -> Reading:
    """By the picker's rules: of several LoRA series the one with the greatest value counts."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    lora = max(families["vllm:lora_requests_info"].samples, key=lambda sample: sample.value)

    def names(label: str) -> frozenset[str]:
        parts = (part.strip() for part in lora.labels[label].split(","))
        return frozenset(part for part in parts if part)

    gauges = [
        families[f"vllm:{name}"].samples[0].value
        for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc")
    ]
    return Reading(
        *gauges,
        max_lora=int(lora.labels["max_lora"]),
        running_adapters=names("running_lora_adapters"),
        waiting_adapters=names("waiting_lora_adapters"),
    )


def entry(name: str, *, pinned: bool = False, canary: str | None = None) -> AdapterEntry:
    digest = name[0] * 64
    trial = Canary(1, canary * 64, 0.5) if canary else None
    return AdapterEntry(name, digest, 0, 0, is_pinned=pinned, canary=trial, kept=(digest,))


def stats(
    resident: str = "", running: str = "", waiting: str = "", *, room: int = 4
) -> EngineStats:
    """Versions by the letter that their digests repeat; ``room`` of them fit."""
    queues = {
        letter * 64: VersionQueue(
            num_waiting=waiting.count(letter), num_running=running.count(letter)
        )
        for letter in {*running, *waiting}
    }
    return EngineStats(
        num_running=len(running),
        num_waiting=len(waiting),
        kv_blocks_used=3,
        kv_blocks_total=12,
        adapter_bytes_total=room * MEBIBYTE,
        version_bytes={letter * 64: MEBIBYTE for letter in resident},
        version_queues=queues,
    )


class Replica:
    """One server's page, as its router reads it."""

    def __init__(self, *names: str) -> None:
        self.now = NOW
        self.board = Board("org/base-1b")
        self.entries = [entry(name) for name in names]
        self.router = Router(clock=lambda: self.now)

    def use(self, name: str, seconds_ago: float = 0.0) -> None:
        self.board.of(name)
        self.board.adapters[name].last_used = self.now - seconds_ago

    def page(self, found: EngineStats) -> str:
        page = Exposition()
        self.router.write(page, found, None, self.board, self.entries)
        return page.content().decode()

    def read(self, found: EngineStats) -> Reading:
        return read(self.page(found))


def test_the_signals_have_the_names_and_the_labels_that_routers_know():
    replica = Replica("alpha")
    text = replica.page(stats("a", "a", "bb"))
    state = '{model_name="org/base-1b",engine="0"}'
    assert f"vllm:num_requests_waiting{state} 2.0" in text
    assert f"vllm:num_requests_running{state} 1.0" in text
    assert f"vllm:kv_cache_usage_perc{state} 0.25" in text
    lists = 'max_lora="4",running_lora_adapters="alpha",waiting_lora_adapters=""'
    assert f"vllm:lora_requests_info{{{lists}}} {NOW}" in text


def test_there_is_one_lora_series_whatever_came_before():
    replica = Replica("alpha", "beta")
    for found in (stats("a", "a"), stats("ab", "b"), stats("", "", "a"), stats()):
        replica.now += 1
        text = replica.page(found)
        series = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
        assert len(series) == 1


def test_the_time_is_that_of_the_last_change_and_never_goes_back():
    replica = Replica("alpha")
    values = []
    for step, found in ((5, stats("a", "a")), (5, stats("a", "a")), (-20, stats())):
        replica.now += step
        line = next(x for x in replica.page(found).splitlines() if x.startswith("vllm:lora_req"))
        values.append(float(line.rpartition(" ")[2]))
    assert values == [NOW + 5, NOW + 5, NOW + 5]


def test_names_survive_the_lists():
    names = ("a.b-c_d", "bot:v1.2", "c-9")
    replica = Replica(*names)
    reading = replica.read(stats("abc", "abc"))
    assert reading.running_adapters == set(names)


def test_a_used_version_stays_listed_until_it_is_cold_or_gone():
    replica = Replica("alpha")
    replica.use("alpha", seconds_ago=10)
    assert replica.read(stats("a")).score("alpha") == 1.0
    assert replica.read(stats("")).score("alpha") == 0.8
    replica.use("alpha", seconds_ago=61)
    assert replica.read(stats("a")).score("alpha") == 0.8


@pytest.mark.parametrize(
    ("model", "pages", "best"),
    [
        ("alpha", (stats("a", "a"), stats("b", "b"), stats()), 0),
        ("alpha", (stats("b", "b"), stats("ab", "a"), stats("b")), 1),
        ("alpha", (stats("bcde", "bcde"), stats("bcd", "bcd"), stats("bcde", "bcde")), 1),
        ("alpha", tuple(stats("bcd", "bcd", letter) for letter in "eaf"), 1),
        ("beta", (stats("a", "a", "b"), stats("b", "b"), stats("a")), 1),
    ],
    ids=["resident", "resident-and-busy", "has-room", "load-in-flight", "loaded-beats-loading"],
)
def test_the_picker_finds_the_right_replica(model, pages, best):
    names = ("alpha", "beta", "c", "d", "e", "f")
    scores = [Replica(*names).read(found).score(model) for found in pages]
    assert scores.index(max(scores)) == best
    assert scores.count(max(scores)) == 1


def test_idle_versions_do_not_hide_that_there_is_room():
    replica = Replica("alpha", "beta", "c", "d")
    for age, name in enumerate(("alpha", "beta", "c", "d")):
        replica.use(name, seconds_ago=age)
    reading = replica.read(stats("abcd"))
    assert reading.running_adapters == {"alpha", "beta", "c"}
    assert reading.score("new") == 0.8


def test_pinned_names_and_canaries_are_known_by_their_versions():
    entries = [entry("alpha", pinned=True), entry("beta", canary="z")]
    assert lora_load(stats("az", "z"), entries, {}, now=NOW) == LoraLoad(4, ("alpha", "beta"), ())
    assert lora_load(stats("a", "", "b"), entries, {}, now=NOW) == LoraLoad(
        4, ("alpha",), ("beta",)
    )


def test_a_replica_without_adapters_offers_itself():
    reading = Replica().read(EngineStats())
    assert (reading.max_lora, reading.running_adapters, reading.kv_use) == (1, frozenset(), 0.0)
    assert reading.score("any") == 0.8
