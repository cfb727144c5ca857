"""Prometheus metrics of one server, in a registry of its own."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from multiflora.adapters.tier import Tier
from multiflora.engine.client import EngineClient, EngineState
from multiflora.engine.errors import EngineError
from multiflora.engine.request import EngineStats
from multiflora.engine.training.jobs.job_census import JobCensus

from .errors import ClientDisconnectedError, http_error
from .training_metrics import training_families

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MAX_NAMES: Final = 256
_OTHER: Final = "other"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAUGES: Final = {
    "requests_waiting": ("num_waiting", "Requests admitted and not yet running."),
    "requests_running": ("num_running", "Requests in the running batch."),
    "kv_blocks_used": ("kv_blocks_used", "KV cache blocks held by requests."),
    "kv_blocks_cached": ("kv_blocks_cached", "KV cache blocks kept for their prefix."),
    "kv_blocks_total": ("kv_blocks_total", "KV cache blocks."),
    "adapter_bytes_used": ("adapter_bytes_used", "Device memory of resident adapter versions."),
    "adapter_bytes_total": ("adapter_bytes_total", "Device memory set aside for adapters."),
    "adapter_host_bytes_used": ("adapter_host_bytes_used", "Host memory of adapter versions."),
    "adapter_host_bytes_total": ("adapter_host_bytes_total", "Host memory set aside for adapters."),
    "adapter_pinned_bytes": ("adapter_pinned_bytes", "Device memory of pinned versions."),
    "adapter_borrowed_bytes": ("adapter_borrowed_bytes", "KV cache that is lent to versions."),
    "adapter_leases": ("adapter_leases", "Leases that running requests hold on versions."),
}
_COUNTERS: Final = {
    "engine_steps": ("steps", "Forward passes."),
    "engine_step_seconds": ("step_seconds", "Time spent in forward passes."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens processed."),
    "cached_prompt_tokens": ("cached_prompt_tokens", "Prompt tokens taken from the prefix cache."),
    "generated_tokens": ("generated_tokens", "Tokens generated."),
    "adapter_loads": ("adapter_loads", "Adapter versions read from the disk."),
    "adapter_copies": ("adapter_copies", "Adapter versions copied to the device."),
    "preemptions": ("preemptions", "Requests set back to make room."),
    "aborts": ("aborts", "Requests aborted."),
}
_TRAINING_GAUGES: Final = {
    "jobs_running": ("num_running", "Training jobs that hold memory and are not paused."),
    "jobs_paused": ("num_paused", "Training jobs that are paused."),
    "jobs_queued": ("num_queued", "Training jobs that wait for their turn."),
    "share": ("share", "Training time per serving time while there are requests."),
    "bytes_used": ("bytes_used", "Device memory reserved by training jobs."),
    "bytes_total": ("bytes_total", "Device memory set aside for training."),
}
_TRAINING_COUNTERS: Final = {
    "quanta": ("quanta", "Pieces of training work."),
    "steps": ("steps", "Optimizer steps of all training jobs."),
    "tokens": ("tokens", "Tokens trained on."),
    "seconds": ("seconds", "Time spent in training."),
}


@dataclass(slots=True)
class RequestRecord:
    """What is measured about one inference request; without an outcome its client has gone."""

    first_token_seconds: Histogram
    adapter: str
    started: float
    outcome: str = "disconnected"
    has_first_token: bool = False
    on_first_token: Callable[[], None] | None = None

    def first_token(self) -> None:
        """Note the time, the first time only."""
        if not self.has_first_token:
            self.has_first_token = True
            if self.on_first_token is not None:
                self.on_first_token()
            elapsed = time.perf_counter() - self.started
            self.first_token_seconds.labels(self.adapter).observe(elapsed)

    def succeed(self) -> None:
        self.outcome = "ok"

    def fail(self, error: Exception) -> None:
        self.outcome = http_error(error).code


class Metrics:
    """Counters of the HTTP side, and a snapshot of the engine's at each scrape.

    The ``adapter`` label takes names that were resolved, so clients cannot invent label values.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._names: set[str] = set()
        self._engine = _EngineCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._engine)
        self._requests = Counter(
            "multiflora_requests",
            "Inference requests by adapter and outcome.",
            ["adapter", "outcome"],
            registry=self._registry,
        )
        self._changes = Counter(
            "multiflora_adapter_changes",
            "Changes to adapters made through the API.",
            ["action"],
            registry=self._registry,
        )
        self._refusals = Counter(
            "multiflora_admission_refusals",
            "Inference requests that were turned away, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._feedback = Counter(
            "multiflora_feedback",
            "What users said about answers, by adapter and kind.",
            ["adapter", "kind"],
            registry=self._registry,
        )
        self._learning_runs = Counter(
            "multiflora_learning_runs",
            "Ended runs of the continual loop, by adapter and outcome.",
            ["adapter", "outcome"],
            registry=self._registry,
        )
        self._first_token = self._histogram("time_to_first_token", "Time to the first token.")
        self._end_to_end = self._histogram("request", "Time from the request to its last token.")

    @contextmanager
    def request(self, adapter: str) -> Iterator[RequestRecord]:
        """Count and time one request of a resolved name."""
        record = RequestRecord(self._first_token, self._label(adapter), time.perf_counter())
        try:
            yield record
        except ClientDisconnectedError:
            raise
        except Exception as error:
            record.fail(error)
            raise
        finally:
            self._requests.labels(record.adapter, record.outcome).inc()
            self._end_to_end.labels(record.adapter).observe(time.perf_counter() - record.started)

    def adapter_change(self, action: str) -> None:
        self._changes.labels(action).inc()

    def refusal(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def feedback(self, adapter: str, kind: str) -> None:
        self._feedback.labels(self._label(adapter), kind).inc()

    def learning_run(self, adapter: str, outcome: str) -> None:
        self._learning_runs.labels(self._label(adapter), outcome).inc()

    async def render(self, jobs: JobCensus | None = None) -> bytes:
        """The classic text format."""
        self._engine.jobs = jobs
        self._engine.is_ready = self._client.state is EngineState.READY
        try:
            self._engine.stats = await self._client.stats()
        except EngineError:
            # A restarting engine keeps the last values; multiflora_engine_up says that it is down.
            self._engine.is_ready = False
        self._engine.num_tasks = len(asyncio.all_tasks())
        self._engine.num_streams = self._client.num_streams
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"multiflora_{name}_seconds",
            text,
            ["adapter"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def _label(self, adapter: str) -> str:
        if adapter not in self._names and len(self._names) >= _MAX_NAMES:
            return _OTHER
        self._names.add(adapter)
        return adapter


class _EngineCollector(Collector):
    """Turns the latest ``EngineStats`` into families."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.is_ready = False
        self.num_tasks = 0
        self.num_streams = 0
        self.jobs: JobCensus | None = None

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "multiflora_engine_up", "Whether the engine is ready.", float(self.is_ready)
        )
        yield GaugeMetricFamily(
            "multiflora_event_loop_tasks", "Tasks of the API process.", self.num_tasks
        )
        yield GaugeMetricFamily(
            "multiflora_open_streams", "Sequences that the API process waits for.", self.num_streams
        )
        for name, (attribute, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"multiflora_{name}", text, getattr(self.stats, attribute))
        for name, (attribute, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"multiflora_{name}", text, getattr(self.stats, attribute))
        for name, (attribute, text) in _TRAINING_GAUGES.items():
            value = getattr(self.stats.training, attribute)
            yield GaugeMetricFamily(f"multiflora_training_{name}", text, value)
        for name, (attribute, text) in _TRAINING_COUNTERS.items():
            value = getattr(self.stats.training, attribute)
            yield CounterMetricFamily(f"multiflora_training_{name}", text, value)
        if self.jobs is not None:
            yield from training_families(self.jobs)
        yield _counter(
            "requests_finished",
            "Sequences finished, by reason.",
            "reason",
            self.stats.requests_finished,
        )
        yield _counter(
            "adapter_arrivals",
            "Versions of new requests, by the tier that they were found in.",
            "tier",
            self.stats.adapter_arrivals,
        )
        evictions: dict[str, int] = {
            Tier.DEVICE: self.stats.adapter_evictions,
            Tier.HOST: self.stats.adapter_host_evictions,
        }
        yield _counter(
            "adapter_evictions", "Versions that left a tier for others.", "tier", evictions
        )


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"multiflora_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
