"""A server's page as an endpoint picker keeps and weighs it, by the rules of llm-d's.

Of several LoRA series the one with the greatest value counts; lists are split at commas and
trimmed; a family that is absent is one that says nothing.
"""

from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from multiflora.adapters.canary import Canary
from multiflora.adapters.entry import AdapterEntry
from multiflora.engine.request import EngineStats, VersionQueue
from multiflora.server.metric.board import Board
from multiflora.server.metric.exposition import Exposition
from multiflora.server.metric.router_family import Router

NOW: Final = 1_800_000_000.0
MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True)
class Reading:
    """One scrape, as the picker keeps it."""

    waiting: float
    running: float
    kv_use: float
    max_lora: int
    running_adapters: frozenset[str]
    waiting_adapters: frozenset[str]

    def score(self, model: str) -> float:
        """How much a request for ``model`` belongs here."""
        if model in self.running_adapters:
            return 1.0
        if len(self.running_adapters) + len(self.waiting_adapters) < self.max_lora:
            return 0.8
        return 0.6 if model in self.waiting_adapters else 0.0


def read(text: str) -> Reading:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    family = families.get("vllm:lora_requests_info")
    lora = max(family.samples, key=lambda sample: sample.value).labels if family else {}

    def names(label: str) -> frozenset[str]:
        parts = (part.strip() for part in lora.get(label, "").split(","))
        return frozenset(part for part in parts if part)

    gauges = [
        families[f"vllm:{name}"].samples[0].value
        for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc")
    ]
    return Reading(
        *gauges,
        max_lora=int(lora.get("max_lora", "0")),
        running_adapters=names("running_lora_adapters"),
        waiting_adapters=names("waiting_lora_adapters"),
    )


def entry(name: str, *, pinned: bool = False, canary: str | None = None) -> AdapterEntry:
    digest = name[0] * 64
    trial = Canary(1, canary * 64, 0.5) if canary else None
    return AdapterEntry(name, digest, 0, 0, is_pinned=pinned, canary=trial, kept=(digest,))


def stats(
    resident: str = "", running: str = "", waiting: str = "", *, room: int = 4
) -> EngineStats:
    """Versions by the letter that their digests repeat; ``room`` of them fit."""
    queues = {
        letter * 64: VersionQueue(
            num_waiting=waiting.count(letter), num_running=running.count(letter)
        )
        for letter in {*running, *waiting}
    }
    return EngineStats(
        num_running=len(running),
        num_waiting=len(waiting),
        kv_blocks_used=3,
        kv_blocks_total=12,
        adapter_bytes_total=room * MEBIBYTE,
        version_bytes={letter * 64: MEBIBYTE for letter in resident},
        version_queues=queues,
    )


class Replica:
    """One server's page, as its router reads it."""

    def __init__(self, *names: str) -> None:
        self.now = NOW
        self.board = Board("org/base-1b")
        self.entries = [entry(name) for name in names]
        self.router = Router(clock=lambda: self.now)

    def use(self, name: str, seconds_ago: float = 0.0) -> None:
        self.board.of(name)
        self.board.adapters[name].last_used = self.now - seconds_ago

    def page(self, found: EngineStats) -> str:
        page = Exposition()
        self.router.write(page, found, None, self.board, self.entries)
        return page.content().decode()

    def read(self, found: EngineStats) -> Reading:
        return read(self.page(found))
