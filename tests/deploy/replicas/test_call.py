"""Which adapters a body names, and what of its headers goes on."""

import pytest

from deploy.replicas.call import Head, adapters_in, onward

KNOWN = {"alpha", "beta", "bot:v1"}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model": "alpha"}', ("alpha",)),
        (b'{"model": "base:alpha"}', ("alpha",)),
        (b'{"model": "bot:v1"}', ("bot:v1",)),
        (b'{"model": "base", "adapter_id": "beta"}', ("beta",)),
        (b'{"model": "alpha", "lora_path": "alpha"}', ("alpha",)),
        (b'{"model": "b", "adapters": [{"name": "beta"}, {"name": "alpha"}]}', ("beta", "alpha")),
        (b'{"model": "nobody"}', ()),
        (b'{"model": 5, "adapters": 7}', ()),
        (b'{"adapters": ["alpha", null]}', ()),
        (b"[1]", ()),
        (b"{", ()),
        (b"", ()),
    ],
)
def test_adapters_are_those_that_the_body_names_and_the_store_has(body, found):
    assert adapters_in(body, KNOWN) == found


def test_headers_of_one_hop_stay_on_it():
    given = (("host", "a"), ("authorization", "b"), ("content-length", "3"), ("x-own", "c"))
    assert onward(given) == (("authorization", "b"), ("x-own", "c"))


@pytest.mark.parametrize(
    ("kind", "is_stream"), [("text/event-stream; charset=utf-8", True), ("application/json", False)]
)
def test_a_stream_is_known_by_its_type(kind, is_stream):
    assert Head(status=200, headers=(("content-type", kind),)).is_stream is is_stream
