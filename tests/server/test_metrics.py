"""Metrics stay small and tell the outcomes apart."""

import pytest

from multiflora.adapters.histogram import Distribution
from multiflora.adapters.tier import Tier
from multiflora.adapters.version import Version
from multiflora.engine.errors import RequestFailed
from multiflora.engine.request import EngineStats, StepStats, TrainingStats, VersionQueue
from multiflora.engine.training.jobs.job_census import JobCensus
from multiflora.server.errors import ClientDisconnectedError
from multiflora.server.metrics import Metrics

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


def values(text: str) -> dict[str, float]:
    """Every sample of a page by its name and labels."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_tokens_and_times_are_counted_for_the_adapter_and_for_all(service, complete):
    usage = (await complete(model="json", n=2)).json()["usage"]

    lean = values((await service.metrics.render()).decode())
    full = values((await service.metrics.render_adapters()).decode())
    kinds = {"prompt": "prompt_tokens", "generated": "completion_tokens"}
    for kind, name in kinds.items():
        counted = f'tokens_total{{adapter="json",kind="{kind}"}}'
        assert lean[f"multiflora_request_{counted}"] == usage[name]
        assert full[f"multiflora_adapter_{counted}"] == usage[name]
    cached = 'multiflora_adapter_tokens_total{adapter="json",kind="cached"}'
    assert full[cached] == usage["prompt_tokens_details"]["cached_tokens"]
    gaps = usage["completion_tokens"] - 2
    assert lean['multiflora_inter_token_seconds_count{adapter="json"}'] == gaps
    assert full['multiflora_adapter_first_token_seconds_count{adapter="json"}'] == 1
    state = '{model_name="base",engine="0"}'
    assert lean[f"vllm:generation_tokens_total{state}"] == usage["completion_tokens"]
    assert lean[f"vllm:e2e_request_latency_seconds_count{state}"] == 1
    success = 'vllm:request_success_total{model_name="base",engine="0",finished_reason="stop"}'
    assert lean[success] == 2


async def test_embeddings_count_the_tokens_that_they_read(service, client):
    body = {"model": "json", "input": ["hi", "hello world"]}
    usage = (await client.post("/v1/embeddings", json=body)).json()["usage"]

    lean = values((await service.metrics.render()).decode())
    assert (
        lean['multiflora_request_tokens_total{adapter="json",kind="prompt"}']
        == (usage["prompt_tokens"])
    )


async def test_a_canarys_share_is_told_as_asked_and_as_it_came_out(service, complete):
    service.registry.publish_version(Version("c" * 64))
    service.registry.set_canary("json", "c" * 64, 0.25)
    for _ in range(8):
        await complete(model="json", max_tokens=1)

    full = values((await service.metrics.render_adapters()).decode())
    assert full['multiflora_adapter_canary_weight{adapter="json"}'] == 0.25
    roles = 'multiflora_adapter_version_requests_total{adapter="json",role='
    assert (full[f'{roles}"active"}}'], full[f'{roles}"canary"}}']) == (6, 2)


async def test_every_adapter_is_on_its_page_with_what_it_is_and_where(service, engine, monkeypatch):
    service.registry.publish_version(Version("d" * 64, rank=16, num_bytes=4096))
    service.registry.point("new", "d" * 64)
    service.registry.pin("new")
    engine.tiers["d" * 64] = Tier.HOST
    queue = VersionQueue(num_waiting=2, oldest_seconds=1.5)

    async def told() -> EngineStats:
        return EngineStats(version_queues={"d" * 64: queue}, version_bytes={"d" * 64: 2048})

    monkeypatch.setattr(engine, "stats", told)
    with service.registry.lease("new"):
        full = values((await service.metrics.render_adapters()).decode())
    found = {
        name: full[f'multiflora_adapter_{name}{{adapter="new"}}']
        for name in (
            *("rank", "file_bytes", "device_bytes", "pinned", "held_leases"),
            *("waiting", "running", "starvation_seconds"),
        )
    }
    assert found == {
        "rank": 16,
        "file_bytes": 4096,
        "device_bytes": 2048,
        "pinned": 1,
        "held_leases": 1,
        "waiting": 2,
        "running": 0,
        "starvation_seconds": 1.5,
    }
    assert full['multiflora_adapter_tier{adapter="new",tier="host"}'] == 1
    assert full['multiflora_adapter_tier{adapter="json",tier="disk"}'] == 1
    info = f'multiflora_adapter_info{{adapter="new",version="{"d" * 12}",canary=""}}'
    assert full[info] == 1


async def test_an_adapter_that_is_deleted_leaves_its_page(service, complete):
    await complete(model="json")
    service.registry.delete("json")
    assert 'adapter="json"' not in (await service.metrics.render_adapters()).decode()


async def test_the_steps_of_the_engine_are_told_by_phase(service, engine, monkeypatch):
    steps = StepStats(
        seconds={"decode": Distribution((0.5,), (3, 1), 2.5)},
        tokens={"prefill": 40, "decode": 4},
        rows={"base": 4, "blend": 1},
        needed_ranks=8,
        computed_ranks=256,
        graph_replays=3,
    )
    loads = {"read": Distribution((1.0,), (2, 0), 0.5)}

    async def told() -> EngineStats:
        return EngineStats(
            step=steps, adapter_load_seconds=loads, adapter_load_failures={"not_finite": 1}
        )

    monkeypatch.setattr(engine, "stats", told)
    found = values((await service.metrics.render()).decode())
    assert found['multiflora_step_seconds_bucket{phase="decode",le="0.5"}'] == 3
    assert found['multiflora_step_seconds_sum{phase="decode"}'] == 2.5
    assert found['multiflora_step_tokens_total{phase="prefill"}'] == 40
    assert found['multiflora_step_rows_total{kind="blend"}'] == 1
    assert found['multiflora_lora_rank_rows_total{kind="computed"}'] == 256
    assert found["multiflora_graph_replays_total"] == 3
    assert found['multiflora_adapter_load_seconds_count{stage="read"}'] == 2
    assert found['multiflora_adapter_load_failures_total{code="not_finite"}'] == 1


async def test_process_and_disk_are_told(service, tmp_path):
    database = tmp_path / "multiflora.db"
    database.with_name("multiflora.db-wal").write_bytes(bytes(4096))
    metrics = Metrics(service.client, data_dir=tmp_path)
    found = values((await metrics.render()).decode())
    assert found["multiflora_process_resident_memory_bytes"] > 1 << 20
    assert 0 < found["multiflora_data_free_bytes"] < found["multiflora_data_bytes"]
    assert found["multiflora_database_log_bytes"] == 4096
