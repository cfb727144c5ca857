"""A request is one span with its stages; nothing is traced, or sent, unless it is asked for."""

import asyncio
import sys
from dataclasses import replace

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from multiflora.engine.errors import RequestFailed, StartupError
from multiflora.engine.request import StageSeconds
from multiflora.server.app import create_app
from multiflora.server.tracing import NoTracing, SpanTracing, make_tracing

pytestmark = pytest.mark.anyio

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def service(service, exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return replace(service, tracing=SpanTracing(provider))


@pytest.fixture
def spans(exporter):
    """Finished spans by name."""
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


@pytest.fixture
def staged(engine):
    """The engine tells how long it took."""

    def script(request):
        stages = StageSeconds(queue=0.1, load=0.05, prefill=0.15)
        first, *rest = engine.say(request)
        return [0.3, replace(first, stages=stages), *rest]

    engine.script = script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("staged")
async def test_a_request_is_a_span_with_its_stages_below(chat, spans, stream):
    answer = await chat(model="json", stream=stream)
    assert answer.status_code == 200

    found = spans()
    whole = found.pop("chat json")
    assert set(found) == {"queue", "adapter_load", "prefill", "decode"}
    assert whole.kind is SpanKind.SERVER
    assert {child.parent.span_id for child in found.values()} == {whole.context.span_id}
    seconds = {name: (span.end_time - span.start_time) / 1e9 for name, span in found.items()}
    assert seconds["adapter_load"] == pytest.approx(0.05, abs=0.001)
    assert seconds["queue"] == pytest.approx(0.1, abs=0.001)
    assert seconds["prefill"] == pytest.approx(0.15, abs=0.001)
    assert found["queue"].end_time <= found["prefill"].start_time + 1e6
    assert found["decode"].end_time <= whole.end_time + 1e6


async def test_a_span_says_what_was_used_and_nothing_of_the_texts(chat, spans):
    answer = await chat(model="json", messages=[{"role": "user", "content": "my secret"}])
    (span,) = (span for name, span in spans().items() if name == "chat json")

    usage, attributes = answer.json()["usage"], span.attributes
    assert attributes["gen_ai.response.id"] == answer.json()["id"]
    assert attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert attributes["multiflora.request_id"] == answer.headers["x-request-id"]
    assert attributes["multiflora.versions"] == "a" * 12
    assert "secret" not in span.to_json()
    assert "hello" not in span.to_json()


async def test_a_span_continues_the_clients_trace(client, spans):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await client.post("/v1/completions", json={"model": "base", "prompt": "hi"}, headers=headers)

    span = spans()["text_completion base"]
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


async def test_a_failure_is_told_by_its_code(engine, complete, spans):
    engine.script = lambda request: [RequestFailed("at /some/path", code="engine_died")]
    await complete()

    span = spans()["text_completion base"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "engine_died"
    assert "/some/path" not in span.to_json()


async def test_without_an_endpoint_nobody_follows_and_nothing_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert isinstance(make_tracing(None), NoTracing)
    with pytest.raises(StartupError, match=r"pip install 'multiflora\[otel\]'"):
        make_tracing("http://127.0.0.1:9/v1/traces")


async def test_an_endpoint_that_is_not_there_costs_no_request(service):
    tracing = make_tracing("http://127.0.0.1:9/v1/traces", timeout_seconds=0.1)
    app = create_app(replace(service, tracing=tracing))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://server"
    ) as client:
        answer = await client.post("/v1/completions", json={"model": "base", "prompt": "hi"})
    assert answer.status_code == 200
    await asyncio.wait_for(asyncio.to_thread(tracing.close), timeout=20)
