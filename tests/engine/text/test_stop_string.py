"""Stop strings are found however the text is cut, and no part of one gets out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.text.stop_string import StopStringMatcher

texts = st.text(alphabet="abc", max_size=30)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


def expected(text: str, stops: list[str]) -> str:
    """By definition: cut where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)]
    return text


def pieces_of(matcher: StopStringMatcher, text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in pairwise(bounds)]
    pieces = [matcher.push(chunk) for chunk in chunks]
    return [*pieces, *([] if matcher.matched else [matcher.finish()])]


@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 30)))
def test_text_ends_before_the_first_complete_stop_string(text, stops, cuts):
    assert "".join(pieces_of(StopStringMatcher(stops), text, cuts)) == expected(text, stops)


@given(text=texts, stops=stop_lists)
def test_what_is_held_back_is_never_more_than_needed(text, stops):
    matcher = StopStringMatcher(stops)
    given_out = "".join(matcher.push(char) for char in text)

    if matcher.matched is None:
        held = text[len(given_out) :]
        assert text.startswith(given_out)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_beginning_that_comes_to_nothing_is_released():
    matcher = StopStringMatcher(["END"])

    assert [matcher.push("x E"), matcher.push("N"), matcher.push("G")] == ["x ", "", "ENG"]


def test_nothing_comes_after_a_match():
    matcher = StopStringMatcher(["\n"])

    assert matcher.push("one\ntwo") == "one"
    assert matcher.matched == "\n"
    assert matcher.push("three") == ""
