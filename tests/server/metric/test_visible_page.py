"""What a tenant reads of a page of metrics."""

from multiflora.server.metric.exposition import Exposition, labels
from multiflora.server.metric.visible_page import visible_page


def page(*names: str) -> bytes:
    made = Exposition()
    made.gauge("up", "Whether.", [("", 1)])
    made.gauge("tier", "Where.", [(labels(adapter=name, tier="disk"), 1) for name in names])
    made.gauge("info", "What.", [(labels(version="1", adapter=name), 1) for name in names])
    lists = labels(running_lora_adapters=",".join(names), waiting_lora_adapters="theirs")
    made.gauge("lora", "Who.", [(lists, 5)])
    return made.content()


def test_it_holds_what_a_page_without_the_others_would_hold() -> None:
    shown = visible_page(page("mine", "theirs", "mine2", "other"), ["mine", "mine2"])
    assert shown == page("mine", "mine2", "other").replace(b'"theirs"', b'""')


def test_a_name_that_another_name_begins_with_is_not_that_name() -> None:
    assert b"mine2" not in visible_page(page("mine", "mine2"), ["mine"])


def test_whoever_sees_all_names_sees_the_page() -> None:
    assert visible_page(page("a", "b.c-d"), ["a", "b.c-d", "theirs"]) == page("a", "b.c-d")
