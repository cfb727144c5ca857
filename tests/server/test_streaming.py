"""Server-sent events: order, usage, errors in the middle."""

import pytest

from multiflora.engine.errors import EngineOverloaded, EngineUnavailable, RequestFailed
from multiflora.engine.request import FinishReason

pytestmark = pytest.mark.anyio


def texts_of(events):
    return [c["text"] for event in events[:-1] for c in event["choices"]]


async def test_a_completion_stream_adds_up_to_the_answer(complete, read_events):
    whole = (await complete()).json()["choices"][0]["text"]

    response = await complete(stream=True)

    events = read_events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(texts_of(events)) == whole
    assert [c["finish_reason"] for e in events[:-1] for c in e["choices"]][-1] == "stop"
    assert events[-1] == "[DONE]"
    assert len({event["id"] for event in events[:-1]}) == 1


async def test_a_chat_stream_begins_with_the_role(chat, read_events):
    events = read_events(await chat(stream=True))

    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello world"
    assert deltas[-1] == {}
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}


async def test_usage_comes_last_with_no_choices(complete, read_events):
    events = read_events(await complete(stream=True, stream_options={"include_usage": True}))

    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] > 0
    assert all(event["usage"] is None for event in events[:-2])


async def test_continuous_usage_grows(complete, read_events):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = read_events(await complete(stream=True, stream_options=options))

    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


async def test_choices_are_interleaved_and_each_is_whole(chat, read_events):
    events = read_events(await chat(stream=True, n=3))

    texts = ["", "", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["hello world"] * 3


async def test_no_part_of_a_stop_string_gets_out(complete, engine, read_events):
    engine.text = "one END two"

    events = read_events(await complete(stream=True, stop="END"))

    assert "".join(texts_of(events)) == "one "


async def test_a_death_in_the_middle_is_an_event_and_the_end(
    complete, engine, read_events, registry
):
    def script(request):
        token = engine.tokenizer.encode("hello")
        return [engine.event(request, token), RequestFailed("it died", code="engine_died")]

    engine.script = script

    events = read_events(await complete(model="json", stream=True))

    assert events[-1]["error"]["code"] == "engine_died"
    assert events[-1]["error"]["type"] == "server_error"
    assert registry.num_leases("a" * 64) == 0


async def test_an_error_event_of_the_engine_ends_the_stream(complete, engine, read_events):
    def script(request):
        return [
            engine.event(request, engine.tokenizer.encode("x")),
            engine.event(request, [], reason=FinishReason.ERROR, error="NaN", code="numerics"),
        ]

    engine.script = script

    assert read_events(await complete(stream=True))[-1]["error"]["message"] == "NaN"


@pytest.mark.parametrize(
    ("error", "status"),
    [(EngineOverloaded("full"), 429), (EngineUnavailable("restarting"), 503)],
    ids=["queue_full", "unavailable"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_refusal_has_its_own_status_even_for_streams(
    complete, engine, registry, error, status, stream
):
    engine.script = lambda request: [error]

    response = await complete(model="json", stream=stream)

    assert response.status_code == status
    assert response.json()["error"]["code"] == error.code
    assert int(response.headers["retry-after"]) >= 1
    assert registry.num_leases("a" * 64) == 0


async def test_one_failing_choice_ends_all(complete, engine, registry):
    def script(request):
        if request.id.endswith("-1"):
            return [RequestFailed("broken")]
        return [60.0]

    engine.script = script

    response = await complete(model="json", n=3)

    assert response.status_code == 500
    assert engine.running == set()
    assert registry.num_leases("a" * 64) == 0


async def test_an_unexpected_error_in_the_middle_is_logged_and_hidden(
    complete, engine, read_events, caplog
):
    engine.script = lambda request: [
        engine.event(request, engine.tokenizer.encode("x")),
        ZeroDivisionError("secret"),
    ]

    response = await complete(stream=True)

    assert read_events(response)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text
