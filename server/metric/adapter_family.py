"""Every adapter by name: the page that is read seldom, because it grows with their number."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.histogram import Histogram
from multiflora.adapters.tier import Tier
from multiflora.adapters.version import Version
from multiflora.engine.request import EngineStats, VersionQueue

from .board import Board
from .exposition import Exposition, labels
from .request_family import token_kinds
from .tally import Tally

_NOBODY: Final = VersionQueue()
_HISTOGRAMS: Final[dict[str, tuple[Callable[[Tally], Histogram], str]]] = {
    "first_token": (lambda tally: tally.first_token, "Time to the first token."),
    "inter_token": (lambda tally: tally.inter_token, "Time between two tokens of an answer."),
    "queue": (lambda tally: tally.queue, "Time until the scheduler took the request."),
    "load_wait": (lambda tally: tally.load, "Part of that until the version was on the device."),
}


def write_traffic(page: Exposition, board: Board) -> None:
    """Requests, tokens and times of every adapter that had a request."""
    found = {labels(adapter=name): tally for name, tally in list(board.adapters.items())}
    for name, text, label, counts in (
        ("requests", "Requests by outcome.", "outcome", _outcomes),
        ("version_requests", "Requests by the version's role.", "role", _roles),
        ("tokens", "Tokens by kind.", "kind", token_kinds),
    ):
        samples = [
            (f"{own},{labels(**{label: value})}", count)
            for own, tally in found.items()
            for value, count in counts(tally)
        ]
        page.counter(f"multiflora_adapter_{name}", text, samples)
    last = [(own, tally.last_used) for own, tally in found.items()]
    page.gauge("multiflora_adapter_last_used_timestamp_seconds", "Its last request.", last)
    for name, (histogram, text) in _HISTOGRAMS.items():
        samples = [(own, histogram(tally).snapshot()) for own, tally in found.items()]
        page.histogram(f"multiflora_adapter_{name}_seconds", text, samples)


def _outcomes(tally: Tally) -> list[tuple[str, int]]:
    return list(tally.outcomes.items())


def _roles(tally: Tally) -> list[tuple[str, int]]:
    return list(tally.roles.items())


def write_state(
    page: Exposition,
    entries: Sequence[AdapterEntry],
    versions: Mapping[str, Version],
    tiers: Mapping[str, Tier],
    leases: Mapping[str, int],
    stats: EngineStats,
) -> None:
    """What every adapter is and where it is; ``versions``, ``tiers`` and ``leases`` by digest."""

    def gauge(name: str, text: str, value: Callable[[AdapterEntry], float]) -> None:
        samples = [(labels(adapter=entry.name), value(entry)) for entry in entries]
        page.gauge(f"multiflora_adapter_{name}", text, samples)

    infos = [(_info(entry), 1) for entry in entries]
    page.gauge("multiflora_adapter_info", "The version that a name points at; always 1.", infos)
    places = [
        (labels(adapter=entry.name, tier=tiers.get(entry.digest, Tier.DISK)), 1)
        for entry in entries
    ]
    page.gauge("multiflora_adapter_tier", "The fastest memory that holds it; always 1.", places)
    gauge("rank", "Highest rank.", lambda e: _version(versions, e).rank)
    gauge("file_bytes", "Size of its weights file.", lambda e: _version(versions, e).num_bytes)
    gauge(
        "device_bytes",
        "Device memory of its versions.",
        lambda e: sum(stats.version_bytes.get(digest, 0) for digest in e.in_use),
    )
    gauge("pinned", "Whether it is pinned.", lambda e: e.is_pinned)
    gauge("canary_weight", "The canary's share.", lambda e: e.canary.weight if e.canary else 0)
    gauge("held_leases", "Open requests.", lambda e: sum(leases.get(d, 0) for d in e.in_use))
    gauge("waiting", "Requests that wait.", lambda e: _sum(stats, e, "num_waiting"))
    gauge("running", "Requests in the batch.", lambda e: _sum(stats, e, "num_running"))
    gauge(
        "starvation_seconds",
        "How long the request that waits longest has waited.",
        lambda e: max(queue.oldest_seconds for queue in _queues(stats, e)),
    )


def _info(entry: AdapterEntry) -> str:
    canary = entry.canary.digest[:12] if entry.canary else ""
    return labels(adapter=entry.name, version=entry.digest[:12], canary=canary)


def _version(versions: Mapping[str, Version], entry: AdapterEntry) -> Version:
    return versions.get(entry.digest) or Version(entry.digest)


def _queues(stats: EngineStats, entry: AdapterEntry) -> Iterable[VersionQueue]:
    return (stats.version_queues.get(digest, _NOBODY) for digest in entry.in_use)


def _sum(stats: EngineStats, entry: AdapterEntry, attribute: str) -> float:
    return sum(getattr(queue, attribute) for queue in _queues(stats, entry))
