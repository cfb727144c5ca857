"""Traces of requests for OpenTelemetry: off, and nothing imported, unless an endpoint is given.

A request is one span, with spans of its stages below it: queue, adapter load, prefill, decode. They
are made when it is over, from the times that were measured for the metrics anyway. No span holds
what a client asked or was answered.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import multiflora
from multiflora.engine.errors import StartupError
from multiflora.engine.log_line import request_id

from .metric.request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_NANOSECONDS: Final = 1_000_000_000


class Tracing(Protocol):
    """Watches requests; ``close`` sends what is left."""

    def follow(
        self, record: RequestRecord, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> None:
        """Trace a request when it ends, below the span that its ``headers`` name."""
        ...

    def close(self) -> None: ...


class NoTracing:
    """Follows nobody."""

    def follow(
        self, record: RequestRecord, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> None:
        pass

    def close(self) -> None:
        pass


class SpanTracing:
    """Makes spans of ``provider``, which sends them on its own thread."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("multiflora", multiflora.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def follow(
        self, record: RequestRecord, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> None:
        named = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        context = self._propagator.extract(named)
        own = {**attributes, "multiflora.request_id": request_id.get()}
        record.on_end.append(partial(self._end, context, own))

    def close(self) -> None:
        self._provider.shutdown()

    def _end(self, parent: "Context", attributes: Mapping[str, str], record: RequestRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        operation = attributes.get("gen_ai.operation.name", "generate")
        span = self._tracer.start_span(
            f"{operation} {attributes.get('gen_ai.request.model', '')}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            start_time=_clock(record.started),
            attributes={
                **attributes,
                "multiflora.outcome": record.outcome,
                "multiflora.version_role": record.role,
                "gen_ai.usage.input_tokens": record.num_prompt_tokens,
                "gen_ai.usage.output_tokens": record.num_generated_tokens,
                "multiflora.cached_tokens": record.num_cached_tokens,
            },
        )
        if record.outcome not in ("ok", "disconnected"):
            span.set_attribute("error.type", record.outcome)
            span.set_status(Status(StatusCode.ERROR, record.outcome))
        ended = time.perf_counter()
        below = set_span_in_context(span, parent)
        for name, start, stop in _stages(record, ended):
            child = self._tracer.start_span(name, context=below, start_time=_clock(start))
            child.end(_clock(stop))
        span.end(_clock(ended))


def _stages(record: RequestRecord, ended: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of each stage that a request reached, by the performance counter."""
    if record.first_token_at is None or record.stages is None:
        return []
    stages, prefilled = record.stages, record.first_token_at
    # The engine's clock is another process's: no stage begins before its request.
    admitted = max(record.started, prefilled - stages.prefill)
    submitted = max(record.started, admitted - stages.queue)
    found = [("queue", submitted, admitted)]
    if stages.load:
        found.append(("adapter_load", submitted, min(submitted + stages.load, admitted)))
    return [*found, ("prefill", admitted, prefilled), ("decode", prefilled, ended)]


def _clock(reading: float) -> int:
    """Nanoseconds since 1970 of a reading of the performance counter."""
    return time.time_ns() - int((time.perf_counter() - reading) * _NANOSECONDS)


def make_tracing(endpoint: str | None, *, timeout_seconds: float = 3.0) -> Tracing:
    """Spans go to the OTLP/HTTP ``endpoint``, or nowhere without one. Raises ``StartupError``."""
    if endpoint is None:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(
            f"--otlp-endpoint needs {error.name}; install it with pip install 'multiflora[otel]'"
        ) from error
    resource = Resource.create({"service.name": "multiflora"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=timeout_seconds)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return SpanTracing(provider)
