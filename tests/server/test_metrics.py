"""Metrics stay small and tell the outcomes apart."""

import pytest

from multiflora.engine.errors import RequestFailed
from multiflora.engine.request import EngineStats, TrainingStats
from multiflora.engine.training.jobs.job_census import JobCensus
from multiflora.server.errors import ClientDisconnectedError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestFailed("x", code="engine_died"), "engine_died"),
        (ZeroDivisionError(), "internal_error"),
        (ClientDisconnectedError(), "disconnected"),
    ],
)
async def test_a_request_that_fails_is_counted_by_its_code(service, error, outcome):
    with pytest.raises(type(error)), service.metrics.request("a"):
        raise error

    text = (await service.metrics.render()).decode()
    assert f'multiflora_requests_total{{adapter="a",outcome="{outcome}"}} 1.0' in text


async def test_many_adapters_share_one_label(service):
    for number in range(300):
        with service.metrics.request(f"adapter-{number}") as record:
            record.succeed()

    text = (await service.metrics.render()).decode()
    assert 'multiflora_requests_total{adapter="other",outcome="ok"} 284.0' in text
    assert "adapter-16" not in text


async def test_the_first_token_is_timed_once(service):
    with service.metrics.request("a") as record:
        record.first_token()
        record.first_token()

    text = (await service.metrics.render()).decode()
    assert 'multiflora_time_to_first_token_seconds_count{adapter="a"} 1.0' in text


async def test_training_is_told_in_gauges_and_counters(service, engine, monkeypatch):
    training = TrainingStats(num_running=1, num_queued=2, quanta=70, tokens=900, seconds=1.5)

    async def told() -> EngineStats:
        return EngineStats(training=training)

    monkeypatch.setattr(engine, "stats", told)
    lines = set((await service.metrics.render()).decode().splitlines())
    assert lines >= {
        "multiflora_training_jobs_running 1.0",
        "multiflora_training_jobs_queued 2.0",
        "multiflora_training_quanta_total 70.0",
        "multiflora_training_tokens_total 900.0",
        "multiflora_training_seconds_total 1.5",
    }


async def test_jobs_are_counted_by_status_and_verdict_and_running_losses_are_told(service):
    census = JobCensus(
        statuses={"running": 1, "failed": 2},
        verdicts={True: 3, False: 1},
        losses={("dpo", "train"): 0.5, ("dpo", "validation"): 0.75},
    )
    service.metrics.census = lambda: census
    lines = set((await service.metrics.render()).decode().splitlines())
    assert lines >= {
        'multiflora_training_jobs{status="running"} 1.0',
        'multiflora_training_jobs{status="failed"} 2.0',
        'multiflora_training_gate_verdicts{outcome="passed"} 3.0',
        'multiflora_training_gate_verdicts{outcome="refused"} 1.0',
        'multiflora_training_loss{method="dpo",split="train"} 0.5',
        'multiflora_training_loss{method="dpo",split="validation"} 0.75',
    }


async def test_the_movements_of_adapters_are_told_by_tier(service, engine, monkeypatch):
    stats = EngineStats(
        adapter_evictions=3,
        adapter_eviction_causes={"room": 2, "kv_cache": 1},
        adapter_host_evictions=2,
        adapter_arrivals={"device": 5, "disk": 1},
        adapter_loads=4,
        adapter_pinned_bytes=64,
    )

    async def told() -> EngineStats:
        return stats

    monkeypatch.setattr(engine, "stats", told)
    lines = set((await service.metrics.render()).decode().splitlines())
    assert lines >= {
        'multiflora_adapter_evictions_total{tier="device",cause="room"} 2.0',
        'multiflora_adapter_evictions_total{tier="device",cause="kv_cache"} 1.0',
        'multiflora_adapter_evictions_total{tier="host",cause="room"} 2.0',
        'multiflora_adapter_arrivals_total{tier="device"} 5.0',
        'multiflora_adapter_arrivals_total{tier="disk"} 1.0',
        "multiflora_adapter_loads_total 4.0",
        "multiflora_adapter_pinned_bytes 64.0",
    }
