"""From the parts of an engine to the numbers that it tells about itself. Imports no torch."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from multiflora.adapters.residency import Residency

from .active_request import ActiveRequest
from .kv_blocks import BlockPool
from .request import EngineStats, MachineStats, StepStats, TrainingStats, VersionQueue
from .scheduler import Scheduler


def engine_stats(
    *,
    counts: Mapping[str, int],
    finished: Mapping[str, int],
    step_seconds: float,
    scheduler: Scheduler,
    pool: BlockPool,
    residency: Residency,
    step: StepStats,
    machine: MachineStats,
    training: TrainingStats,
) -> EngineStats:
    """``counts`` are those of the loop by name, ``finished`` its requests by reason."""
    slots, host = residency.slots, residency.host
    return EngineStats(
        steps=counts["steps"],
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        kv_blocks_used=pool.num_used,
        kv_blocks_cached=pool.num_cached,
        kv_blocks_total=pool.num_blocks - 1,
        prompt_tokens=counts["prompt_tokens"],
        cached_prompt_tokens=counts["cached_prompt_tokens"],
        generated_tokens=counts["generated_tokens"],
        preemptions=scheduler.num_preemptions,
        aborts=counts["aborts"],
        adapter_bytes_used=slots.used_bytes,
        adapter_bytes_total=slots.capacity_bytes,
        adapter_borrowed_bytes=slots.borrowed_bytes,
        adapter_leases=slots.num_leases,
        resident_versions=slots.digests(),
        pinned_versions=slots.pinned,
        adapter_pinned_bytes=slots.pinned_bytes,
        adapter_evictions=slots.num_evictions,
        adapter_eviction_causes={cause.value: n for cause, n in slots.evictions.items()},
        adapter_host_bytes_used=host.used_bytes,
        adapter_host_bytes_total=host.capacity_bytes,
        adapter_host_evictions=host.num_evictions,
        adapter_loads=residency.num_loads,
        adapter_copies=residency.num_copies,
        adapter_arrivals={tier.value: n for tier, n in residency.arrivals.items()},
        adapter_load_seconds={s: found.snapshot() for s, found in residency.load_seconds.items()},
        adapter_load_failures=dict(residency.load_failures),
        version_queues=_queues(scheduler.requests, time.perf_counter()),
        version_bytes=slots.sizes(),
        step_seconds=step_seconds,
        requests_finished=dict(finished),
        step=step,
        machine=machine,
        training=training,
    )


def _queues(requests: Iterable[ActiveRequest], now: float) -> dict[str, VersionQueue]:
    waiting: defaultdict[str, list[float]] = defaultdict(list)
    running: defaultdict[str, int] = defaultdict(int)
    for request in requests:
        for digest in request.digests or ("",):
            if request.blocks:
                running[digest] += 1
            else:
                waiting[digest].append(now - request.milestones.submitted)
    return {
        digest: VersionQueue(
            num_waiting=len(waiting[digest]),
            num_running=running[digest],
            oldest_seconds=max(waiting[digest], default=0.0),
        )
        for digest in {**waiting, **running}
    }
