"""vLLM's names, as LoRA-aware routers and common dashboards read them.

The contract is that of the Gateway API's endpoint picker: waiting, running, the KV cache, its
geometry, and exactly one series of ``vllm:lora_requests_info``, whose labels are lists with commas
and whose value is the Unix time of their last change. vLLM lists only adapters with a request; here
a version that is on the device and was used a moment ago is listed too, because a request for it
finds it there.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.histogram import Histogram
from multiflora.engine.request import EngineInfo, EngineStats

from .board import Board
from .exposition import Exposition, labels
from .tally import TotalTally

_WARM_SECONDS: Final = 60.0
_HISTOGRAMS: Final[dict[str, tuple[Callable[[TotalTally], Histogram], str]]] = {
    "time_to_first_token_seconds": (lambda t: t.first_token, "Time to first token."),
    "inter_token_latency_seconds": (lambda t: t.inter_token, "Time between two tokens."),
    "request_time_per_output_token_seconds": (lambda t: t.per_token, "Its mean by request."),
    "e2e_request_latency_seconds": (lambda t: t.whole, "Time of a request."),
    "request_queue_time_seconds": (lambda t: t.queue, "Time until it was scheduled."),
    "request_prefill_time_seconds": (lambda t: t.prefill, "Time from there to its first token."),
    "request_decode_time_seconds": (lambda t: t.decode, "Time from there to its last token."),
    "request_prompt_tokens": (lambda t: t.prompt_sizes, "Tokens of a prompt."),
    "request_generation_tokens": (lambda t: t.answer_sizes, "Tokens of an answer."),
}


@dataclass(frozen=True, slots=True)
class LoraLoad:
    """Names of adapters that are ready on the device, and of those that somebody waits for."""

    max_lora: int
    running: tuple[str, ...]
    waiting: tuple[str, ...]


class Router:
    """Keeps the time of the last change."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: LoraLoad | None = None
        self._changed = 0.0

    def write(
        self,
        page: Exposition,
        stats: EngineStats,
        info: EngineInfo | None,
        board: Board,
        entries: Sequence[AdapterEntry],
    ) -> None:
        own = labels(model_name=board.base, engine="0")
        _write_state(page, stats, own)
        if info is not None:
            blocks = str(stats.kv_blocks_total)
            geometry = labels(block_size=str(info.block_size), num_gpu_blocks=blocks)
            text = "Geometry of the KV cache."
            page.gauge("vllm:cache_config_info", text, [(f"{own},{geometry}", 1)])
        load = lora_load(stats, entries, _last_used(board), now=self._clock())
        if load != self._last:
            self._last, self._changed = load, max(self._clock(), self._changed)
        lists = labels(
            max_lora=str(load.max_lora),
            running_lora_adapters=",".join(load.running),
            waiting_lora_adapters=",".join(load.waiting),
        )
        text = "Adapters on the device and adapters waited for; the value is when that changed."
        page.gauge("vllm:lora_requests_info", text, [(lists, self._changed)])
        _write_totals(page, stats, board.total, own)


def lora_load(
    stats: EngineStats,
    entries: Iterable[AdapterEntry],
    last_used: Mapping[str, float],
    *,
    now: float,
) -> LoraLoad:
    """Who is ready, who is awaited, and for how many there is room.

    Names with requests come first. Idle ones are left out, the one used longest ago first, as far
    as that is what it takes for the lists to stay below ``max_lora``: there is room for another.
    """
    busy, idle, waiting = [], [], []
    resident, queues = stats.version_bytes, stats.version_queues
    run = {digest for digest, queue in queues.items() if queue.num_running}
    wait = {digest for digest, queue in queues.items() if queue.num_waiting}
    for entry in entries:
        name, active = entry.name, entry.digest
        trial = entry.canary.digest if entry.canary else active
        is_resident = active in resident or trial in resident
        if is_resident and (active in run or trial in run):
            busy.append(name)
        elif active in wait or trial in wait:
            waiting.append(name)
        elif is_resident:
            used = last_used.get(name, 0.0)
            if entry.is_pinned or now - used < _WARM_SECONDS:
                idle.append((not entry.is_pinned, -used, name))
    max_lora = _capacity(stats)
    room = max(0, max_lora - 1 - len(busy) - len(waiting))
    warm = [name for _, _, name in sorted(idle)[:room]]
    return LoraLoad(max_lora, tuple(sorted(busy + warm)), tuple(sorted(waiting)))


def _capacity(stats: EngineStats) -> int:
    """Versions of the mean resident size that fit on the device; memory is by real rank."""
    sizes = stats.version_bytes.values()
    mean = sum(sizes) / len(sizes) if sizes else 0
    if not mean:
        return 1
    return max(1, len(sizes), int(stats.adapter_bytes_total / mean))


def _last_used(board: Board) -> dict[str, float]:
    return {name: tally.last_used for name, tally in list(board.adapters.items())}


def _write_state(page: Exposition, stats: EngineStats, own: str) -> None:
    used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
    for name, text, value in (
        ("num_requests_waiting", "Requests that wait.", stats.num_waiting),
        ("num_requests_running", "Requests in the batch.", stats.num_running),
        ("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all.", used),
    ):
        page.gauge(f"vllm:{name}", text, [(own, value)])


def _write_totals(page: Exposition, stats: EngineStats, total: TotalTally, own: str) -> None:
    for name, text, value in (
        ("prompt_tokens", "Prompt tokens.", total.prompt_tokens),
        ("generation_tokens", "Generated tokens.", total.generated_tokens),
        ("prefix_cache_queries", "Prompt tokens looked up.", total.prompt_tokens),
        ("prefix_cache_hits", "Prompt tokens found.", total.cached_tokens),
        ("num_preemptions", "Requests set back.", stats.preemptions),
    ):
        page.counter(f"vllm:{name}", text, [(own, value)])
    page.counter(
        "vllm:request_success",
        "Finished sequences.",
        [(f"{own},{labels(finished_reason=r)}", n) for r, n in list(total.finished.items())],
    )
    for name, (histogram, text) in _HISTOGRAMS.items():
        page.histogram(f"vllm:{name}", text, [(own, histogram(total).snapshot())])
