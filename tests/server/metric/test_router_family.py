"""What a LoRA-aware endpoint picker reads and concludes, replayed on real pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.error import InvalidName
from multiflora.adapters.name import check_name
from multiflora.engine.request import EngineStats
from multiflora.server.metric.router_family import LoraLoad, lora_load

from .replica import NOW, Replica, entry, read, stats


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


BASE = "org/base-1b"
# Which replica gets a request for the model; None is one whose page has no list of adapters.
SCENARIOS: dict[str, tuple[str, tuple[EngineStats | None, ...], int]] = {
    "resident": ("alpha", (stats("a", "a"), stats("b", "b"), stats()), 0),
    "resident and busy": ("alpha", (stats("b", "b"), stats("ab", "a"), stats("b")), 1),
    "resident and full": ("alpha", (stats("bc", "bc"), stats(), stats("abcd", "abcd")), 2),
    "resident, some wait for it": ("alpha", (stats("a", "a", "aa"), stats("b", "b")), 0),
    "resident here, awaited there": ("alpha", (stats("b", "b", "a"), stats("a", "a")), 1),
    "resident, others are awaited": ("alpha", (stats(), stats("a", "a", "bcdef")), 1),
    "cold here, warm there": ("alpha", (stats("a"), stats("a", "a")), 1),
    "evicted here, resident there": ("alpha", (stats("bcde", "bcde"), stats("a", "a")), 1),
    "evicted everywhere": ("alpha", (stats("bcde", "bcde"), stats("bcd")), 1),
    "has room": ("alpha", (stats(*["bcde"] * 2), stats("bcd", "bcd"), stats(*["bcde"] * 2)), 1),
    "has more memory": ("alpha", (stats("bcd", "bcd", room=3), stats("bcd", "bcd", room=8)), 1),
    "has room beside loads": ("alpha", (stats("bc", "bc", "de"), stats("bc", "bc", "d")), 1),
    "idle ones make room": ("alpha", (stats("bcde", "bcde"), stats("bcde")), 1),
    "load in flight": ("alpha", tuple(stats("bcd", "bcd", letter) for letter in "eaf"), 1),
    "loaded beats loading": ("beta", (stats("a", "a", "b"), stats("b", "b"), stats("a")), 1),
    "room beats loading": ("alpha", (stats("bcd", "bcd", "a"), stats("b", "b")), 1),
    "loading beats full": ("alpha", (stats("bcde", "bcde"), stats("bcd", "bcd", "a")), 1),
    "no list": ("alpha", (None, stats("bc", "bc")), 1),
    "the base goes where there is room": (BASE, (stats("bcde", "bcde"), stats("b", "b")), 1),
    "an unknown name is no other": ("alph", (stats("abcd", "abcd"), stats("a", "a")), 1),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_picker_finds_the_right_replica(scenario):
    model, pages, best = SCENARIOS[scenario]
    names = ("alpha", "beta", "c", "d", "e", "f")
    scores = [read(page_of(Replica(*names), found)).score(model) for found in pages]
    assert scores.index(max(scores)) == best
    assert scores.count(max(scores)) == 1


def page_of(replica: Replica, found: EngineStats | None) -> str:
    if found is not None:
        return replica.page(found)
    lines = replica.page(stats()).splitlines(keepends=True)
    return "".join(line for line in lines if "lora_requests_info" not in line)


@given(st.from_regex(r"[A-Za-z0-9,;{}\"\\ ._:/-]{1,40}", fullmatch=True))
def test_a_name_that_can_be_published_survives_the_lists(name):
    try:
        check_name(name)
    except InvalidName:
        return
    assert Replica(name).read(stats(name[0], name[0])).running_adapters == {name}


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
