"""What Prometheus reads of one server: a lean page often, and all adapters seldom."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest

import multiflora
from multiflora.adapters.error import UnknownVersion
from multiflora.adapters.registry import DATABASE_NAME, Registry
from multiflora.adapters.tier import Tier
from multiflora.adapters.version import Version
from multiflora.engine.client import EngineClient, EngineState
from multiflora.engine.errors import EngineError, EngineUnavailable
from multiflora.engine.request import EngineInfo, EngineStats
from multiflora.engine.training.jobs.job_census import JobCensus

from .errors import ClientDisconnectedError
from .loop_lag import LoopLag
from .metric.adapter_family import write_state, write_traffic
from .metric.board import Board
from .metric.cached_page import CachedPage
from .metric.disk import write_disk
from .metric.engine_family import write_engine, write_info
from .metric.exposition import CONTENT_TYPE, Exposition
from .metric.request_family import write_requests
from .metric.request_record import RequestRecord
from .metric.router_family import Router
from .metric.training_family import write_jobs, write_training
from .refusal import QueueFull, RateLimited

__all__ = ["CONTENT_TYPE", "Metrics", "RequestRecord"]

_MAX_NAMES: Final = 256
_OTHER: Final = "other"
_FRESH_SECONDS: Final = 0.2
_ADAPTERS_FRESH_SECONDS: Final = 5.0


class Metrics:
    """Counters of the HTTP side, and a snapshot of the engine's at each reading.

    The ``adapter`` label takes names that were resolved, so clients cannot invent label values.
    ``census`` counts the training jobs; it may wait for the disk.
    """

    def __init__(
        self,
        client: EngineClient,
        registry: Registry | None = None,
        *,
        base: str = "base",
        data_dir: Path | None = None,
        census: Callable[[], JobCensus] | None = None,
        fresh_seconds: float = _FRESH_SECONDS,
    ) -> None:
        self.board = Board(base)
        self.census = census
        self.page = CachedPage(self.render, fresh_seconds=fresh_seconds)
        self.adapter_page = CachedPage(
            self.render_adapters, fresh_seconds=min(_ADAPTERS_FRESH_SECONDS, 25 * fresh_seconds)
        )
        self.loop_lag = LoopLag()
        self._client = client
        self._adapters = registry
        self._data_dir = data_dir
        self._router = Router()
        self._stats = EngineStats()
        self._versions: dict[str, Version] = {}
        self._names: set[str] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(namespace="multiflora", registry=self._registry)
        self._changes = self._counter(
            "adapter_changes", "Changes to adapters made through the API.", "action"
        )
        self._refusals = self._counter(
            "admission_refusals", "Inference requests that were turned away, by reason.", "reason"
        )
        for refusal in (QueueFull, RateLimited):
            # A counter that is there before the first refusal can be told from one that is not.
            self._refusals.labels(refusal.code)
        self._feedback = self._counter(
            "feedback", "What users said about answers, by adapter and kind.", "adapter", "kind"
        )
        self._learning_runs = self._counter(
            "learning_runs",
            "Ended runs of the continual loop, by adapter and outcome.",
            "adapter",
            "outcome",
        )

    @contextmanager
    def request(self, adapter: str, *, is_canary: bool = False) -> Iterator[RequestRecord]:
        """Count and time one request of a resolved name."""
        role = "canary" if is_canary else "active"
        record = RequestRecord(self.board.of(adapter), role)
        try:
            yield record
        except ClientDisconnectedError:
            raise
        except Exception as error:
            record.fail(error)
            raise
        finally:
            record.end()

    def adapter_change(self, action: str) -> None:
        self._changes.labels(action).inc()

    def refusal(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def feedback(self, adapter: str, kind: str) -> None:
        self._feedback.labels(self._label(adapter), kind).inc()

    def learning_run(self, adapter: str, outcome: str) -> None:
        self._learning_runs.labels(self._label(adapter), outcome).inc()

    async def render(self) -> bytes:
        """The lean page, as things are now, in the classic text format."""
        is_up = await self._ask_engine()
        num_tasks = len(asyncio.all_tasks())
        num_streams = self._client.num_streams
        page = Exposition()
        page.gauge("multiflora_engine_up", "Whether the engine is ready.", [("", is_up)])
        page.gauge("multiflora_event_loop_tasks", "Tasks of the API process.", [("", num_tasks)])
        text = "Longest wait for the API process's event loop in the last ten seconds."
        page.gauge("multiflora_event_loop_lag_seconds", text, [("", self.loop_lag.seconds)])
        text = "Sequences that the API process waits for."
        page.gauge("multiflora_open_streams", text, [("", num_streams)])
        # Off the event loop: streams go on meanwhile.
        return await asyncio.to_thread(self._write, page, self._info())

    async def render_adapters(self) -> bytes:
        """Every adapter, as things are now."""
        await self._ask_engine()
        try:
            tiers = await self._client.adapter_states()
        except EngineError:
            tiers = {}
        return await asyncio.to_thread(self._write_adapters, tiers)

    def _write(self, page: Exposition, info: EngineInfo | None) -> bytes:
        entries = self._adapters.entries() if self._adapters else []
        text = "Names of adapters."
        page.gauge("multiflora_adapters", text, [("", len(entries))])
        if info is not None:
            write_info(page, info, multiflora.__version__)
        write_engine(page, self._stats)
        write_training(page, self._stats.training)
        if self.census is not None:
            write_jobs(page, self.census())
        write_requests(page, self.board)
        if self._data_dir is not None:
            write_disk(page, self._data_dir, self._data_dir / DATABASE_NAME)
        self._router.write(page, self._stats, info, self.board, entries)
        return page.content() + generate_latest(self._registry)

    def _write_adapters(self, tiers: dict[str, Tier]) -> bytes:
        page = Exposition()
        if self._adapters is not None:
            entries = self._adapters.entries()
            self.board.keep_only({entry.name for entry in entries})
            self._find_versions({entry.digest for entry in entries})
            leases = self._adapters.leases_by_digest()
            write_state(page, entries, self._versions, tiers, leases, self._stats)
        write_traffic(page, self.board)
        return page.content()

    def _find_versions(self, digests: set[str]) -> None:
        """A version never changes, so each is looked up once."""
        assert self._adapters is not None
        known = {digest: v for digest, v in self._versions.items() if digest in digests}
        for digest in digests - known.keys():
            try:
                known[digest] = self._adapters.version(digest)
            except UnknownVersion:
                continue
        self._versions = known

    async def _ask_engine(self) -> bool:
        """Whether it is ready; a restarting engine keeps the last values."""
        if self._client.state is not EngineState.READY:
            return False
        try:
            self._stats = await self._client.stats()
        except EngineError:
            return False
        return True

    def _info(self) -> EngineInfo | None:
        try:
            return self._client.info
        except EngineUnavailable:
            return None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"multiflora_{name}", text, labels, registry=self._registry)

    def _label(self, adapter: str) -> str:
        if adapter not in self._names and len(self._names) >= _MAX_NAMES:
            return _OTHER
        self._names.add(adapter)
        return adapter
