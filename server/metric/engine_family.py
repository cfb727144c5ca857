"""What the engine tells of itself, as families."""

from collections.abc import Mapping
from typing import Final

from multiflora.adapters.tier import Tier
from multiflora.engine.request import EngineInfo, EngineStats

from .exposition import Exposition, labels

_GAUGES: Final = {
    "requests_waiting": ("num_waiting", "Requests admitted and not yet running."),
    "requests_running": ("num_running", "Requests in the running batch."),
    "kv_blocks_used": ("kv_blocks_used", "KV cache blocks held by requests."),
    "kv_blocks_cached": ("kv_blocks_cached", "KV cache blocks kept for their prefix."),
    "kv_blocks": ("kv_blocks_total", "KV cache blocks."),
    "adapter_bytes_used": ("adapter_bytes_used", "Device memory of resident adapter versions."),
    "adapter_bytes": ("adapter_bytes_total", "Device memory set aside for adapters."),
    "adapter_host_bytes_used": ("adapter_host_bytes_used", "Host memory of adapter versions."),
    "adapter_host_bytes": ("adapter_host_bytes_total", "Host memory set aside for adapters."),
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


def write_engine(page: Exposition, stats: EngineStats) -> None:
    """Counters and gauges of the engine as a whole."""
    for name, (attribute, text) in _GAUGES.items():
        page.gauge(f"multiflora_{name}", text, [("", getattr(stats, attribute))])
    for name, (attribute, text) in _COUNTERS.items():
        page.counter(f"multiflora_{name}", text, [("", getattr(stats, attribute))])
    _write_steps(page, stats)
    _write_adapters(page, stats)
    _write_machine(page, stats)


def write_info(page: Exposition, info: EngineInfo, version: str) -> None:
    """What runs here. The base's path is nobody's business; its name is on every request."""
    own = labels(
        version=version,
        family=info.family,
        device=info.device,
        kernels=info.kernels.split()[0],
        dtype=info.dtype,
        quantization=info.quantization,
    )
    page.gauge("multiflora_engine_info", "The engine that serves; always 1.", [(own, 1)])
    page.gauge("multiflora_base_bytes", "Memory of the base.", [("", info.base_bytes)])
    text = "Seconds that the last start of the engine took."
    page.gauge("multiflora_engine_start_seconds", text, [("", info.load_seconds)])


def _write_steps(page: Exposition, stats: EngineStats) -> None:
    step = stats.step
    page.histogram(
        "multiflora_step_seconds",
        "Time of forward passes, by what they held.",
        [(labels(phase=phase), found) for phase, found in step.seconds.items()],
    )
    page.histogram("multiflora_step_requests", "Requests that share a step.", [("", step.requests)])
    page.histogram(
        "multiflora_step_versions", "Adapter versions that share a step.", [("", step.versions)]
    )
    _counter(page, "step_tokens", "Tokens computed, by phase.", "phase", step.tokens)
    _counter(page, "step_rows", "Tokens computed, by what computed them.", "kind", step.rows)
    ranks = {"needed": step.needed_ranks, "computed": step.computed_ranks}
    text = "Rows times LoRA ranks: those of the batch, and those that its tiles compute."
    _counter(page, "lora_rank_rows", text, "kind", ranks)
    text = "Decode steps replayed from captured graphs."
    page.counter("multiflora_graph_replays", text, [("", step.graph_replays)])
    text = "Rows that captured steps computed for nobody."
    page.counter("multiflora_graph_padding_rows", text, [("", step.padding_rows)])


def _write_adapters(page: Exposition, stats: EngineStats) -> None:
    text = "Sequences finished, by reason."
    _counter(page, "requests_finished", text, "reason", stats.requests_finished)
    text = "Versions of new requests, by the tier that they were found in."
    _counter(page, "adapter_arrivals", text, "tier", stats.adapter_arrivals)
    causes = {"room": 0, **stats.adapter_eviction_causes}
    evictions = [(labels(tier=Tier.DEVICE, cause=cause), count) for cause, count in causes.items()]
    evictions.append((labels(tier=Tier.HOST, cause="room"), stats.adapter_host_evictions))
    text = "Versions that left a tier: for another one, or for the KV cache that lent it."
    page.counter("multiflora_adapter_evictions", text, evictions)
    page.histogram(
        "multiflora_adapter_load_seconds",
        "Time of the stages of a version's load.",
        [(labels(stage=stage), found) for stage, found in stats.adapter_load_seconds.items()],
    )
    failures = {"load_failed": 0, **stats.adapter_load_failures}
    text = "Versions that could not be loaded, by the code of the reason."
    _counter(page, "adapter_load_failures", text, "code", failures)
    resident = len(stats.version_bytes)
    page.gauge("multiflora_resident_versions", "Versions on the device.", [("", resident)])
    queues = stats.version_queues.values()
    oldest = max((queue.oldest_seconds for queue in queues), default=0.0)
    text = "How long the request that waits longest has waited."
    page.gauge("multiflora_queue_oldest_seconds", text, [("", oldest)])


def _write_machine(page: Exposition, stats: EngineStats) -> None:
    machine = stats.machine
    text = "Processor time of the engine."
    page.counter("multiflora_engine_cpu_seconds", text, [("", machine.cpu_seconds)])
    text = "Resident memory of the engine."
    page.gauge("multiflora_engine_resident_memory_bytes", text, [("", machine.resident_bytes)])
    page.gauge("multiflora_engine_threads", "Threads of the engine.", [("", machine.num_threads)])
    text = "Device memory in use, by whomever; a CPU's is the machine's."
    page.gauge("multiflora_device_memory_used_bytes", text, [("", machine.device_bytes_used)])
    text = "Device memory there is."
    page.gauge("multiflora_device_memory_bytes", text, [("", machine.device_bytes_total)])


def _counter(page: Exposition, name: str, text: str, label: str, counts: Mapping[str, int]) -> None:
    samples = [(labels(**{label: value}), count) for value, count in counts.items()]
    page.counter(f"multiflora_{name}", text, samples)
