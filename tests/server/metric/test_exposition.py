"""What is written here is what the client library writes, and what its parser reads."""

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from multiflora.adapters.histogram import Histogram as Counts
from multiflora.server.metric.exposition import Exposition, labels

BOUNDS = (0.01, 1, 30)
# What a label may hold: base names come from people.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)


@settings(max_examples=25)
@given(
    st.dictionaries(TEXTS, st.lists(st.floats(0, 100), max_size=8), max_size=4),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_page_is_what_the_client_library_writes(found: dict[str, list[float]], value: float):
    registry = CollectorRegistry()
    gauge = Gauge("a", "One.", ["kind"], registry=registry)
    counter = Counter("b", "Two.", registry=registry)
    histogram = Histogram("c", "Three.", ["name"], buckets=BOUNDS, registry=registry)
    page = Exposition()
    gauge.labels("x").set(value)
    page.gauge("a", "One.", [(labels(kind="x"), value)])
    counter.inc(abs(value))
    page.counter("b", "Two.", [("", abs(value))])
    counts = {name: Counts(BOUNDS) for name in found}
    for name, values in found.items():
        child = histogram.labels(name)
        for one in values:
            child.observe(one)
            counts[name].observe(one)
    page.histogram("c", "Three.", [(labels(name=n), c.snapshot()) for n, c in counts.items()])

    theirs = samples(generate_latest(registry).decode())
    assert samples(page.content().decode()) == theirs


def samples(text: str) -> list[str]:
    return sorted(
        f"{sample.name} {sorted(sample.labels.items())} {sample.value!r}"
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    )


def test_several_equal_values_count_as_many():
    counts = Counts(BOUNDS)
    counts.observe(0.5, 3)
    counts.observe(31)
    found = counts.snapshot()
    assert (found.counts, found.total, found.num_values) == ((0, 3, 0, 1), 32.5, 4)
