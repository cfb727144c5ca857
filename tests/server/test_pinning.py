"""A pin belongs to a name: the engine's pins follow whatever the name points at."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineState
from multiflora.server.publishing import Publisher

pytestmark = pytest.mark.anyio
Publish = Callable[..., Awaitable[str]]


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def publish(client: httpx.AsyncClient, write_adapter: Callable[..., Path]) -> Publish:
    """``await publish("name", seed=1)`` -> the version that the name points at now."""

    async def put(name: str, *, seed: int = 1) -> str:
        folder = write_adapter("source", seed=seed)
        files = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        return (await client.put(f"/v1/adapters/{name}", files=files)).json()["version"]

    return put


async def test_a_pin_follows_its_name(client, publish, engine):
    version = await publish("poet")
    shown = (await client.post("/v1/adapters/poet/pin")).json()
    assert (shown["pinned"], shown["state"]) == (True, "device")

    swapped = await publish("poet", seed=2)
    assert engine.pinned_versions == (swapped,), "the version that is gone is not pinned any more"
    assert (await client.post("/v1/adapters/poet/rollback")).json()["version"] == version
    assert engine.pinned_versions == (version,)
    body = {"version": swapped, "weight": 0.5}
    await client.post("/v1/adapters/poet/canary", json=body)
    assert set(engine.pinned_versions) == {version, swapped}

    assert not (await client.post("/v1/adapters/poet/unpin")).json()["pinned"]
    assert engine.pinned_versions == ()
    for action in ("pin", "unpin", "rollback", "promote"):
        missing = await client.post(f"/v1/adapters/nobody/{action}")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "unknown_adapter"


async def test_two_pinned_names_of_one_version_are_one_pin(client, publish, engine):
    version = await publish("poet")
    assert await publish("bard") == version
    for name in ("poet", "bard"):
        await client.post(f"/v1/adapters/{name}/pin")
    await client.delete("/v1/adapters/poet")
    assert engine.pinned_versions == (version,)
    await client.delete("/v1/adapters/bard")
    assert engine.pinned_versions == ()


async def test_a_pin_without_room_is_refused_and_leaves_nothing(client, publish, engine, registry):
    engine.room_for_pins = 1
    await publish("poet")
    await publish("bard", seed=2)
    assert (await client.post("/v1/adapters/poet/pin")).status_code == 200
    refused = await client.post("/v1/adapters/bard/pin")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "pin_too_large"
    assert not registry.entry("bard").is_pinned
    assert engine.pinned_versions == (registry.entry("poet").digest,)


async def test_a_pin_without_an_engine_waits_for_the_next_one(
    client, publish, engine, service, registry
):
    version = await publish("poet")
    engine.state = EngineState.RESTARTING
    shown = (await client.post("/v1/adapters/poet/pin")).json()
    assert (shown["pinned"], shown["state"]) == (True, "disk")
    engine.state = EngineState.READY
    assert await service.pinning.reconcile() == {}
    assert engine.pinned_versions == (version,)
