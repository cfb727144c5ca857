"""What the server does by itself, with its clockwork set to hurry."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.server.housekeeping import Housekeeping
from multiflora.server.pinning import Pinning
from multiflora.server.publishing import Publisher, Terms
from multiflora.server.watched_folder import WatchedFolder

pytestmark = pytest.mark.anyio


class FakeClient:
    def __init__(self) -> None:
        self.unloaded: list[str] = []
        self.pinned_versions: tuple[str, ...] = ()

    async def pin(self, digest: str) -> None:
        self.pinned_versions = (digest,)

    async def unload_version(self, digest: str) -> None:
        self.unloaded.append(digest)


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@asynccontextmanager
async def running(keeping: Housekeeping) -> AsyncIterator[None]:
    task = asyncio.create_task(keeping.run())
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_what_nobody_can_reach_leaves_the_disk_and_the_engine(
    registry, publisher, write_adapter
) -> None:
    client = FakeClient()
    digest = publisher.publish(write_adapter(), "a", source="", terms=Terms()).digest
    lease = registry.lease("a")
    registry.delete("a")
    keeping = Housekeeping(
        registry,
        publisher,
        cast(EngineClient, client),
        Pinning(registry, cast(EngineClient, client), publisher.match),
        scan_seconds=0.01,
        collect_seconds=0.0,
    )
    async with running(keeping):
        await asyncio.sleep(0.2)
        assert registry.store.digests() == (digest,), "a request holds it"
        lease.release()
        await until(lambda: client.unloaded)
    assert client.unloaded == [digest]
    assert registry.store.digests() == ()


async def test_a_watched_folder_is_looked_at_again_and_again(
    registry, publisher, write_adapter, tmp_path
) -> None:
    root = tmp_path / "watched"
    root.mkdir()
    client = cast(EngineClient, FakeClient())
    keeping = Housekeeping(
        registry,
        publisher,
        client,
        Pinning(registry, client, publisher.match),
        watched=WatchedFolder(root, registry, publisher),
        scan_seconds=0.01,
    )
    async with running(keeping):
        await asyncio.sleep(0.1)
        shutil.copytree(write_adapter("late"), root / "late")
        await until(registry.entries)
        root.rename(tmp_path / "moved")
        await asyncio.sleep(0.1)
        (tmp_path / "moved").rename(root)
        shutil.copytree(write_adapter("later", seed=2), root / "later")
        await until(lambda: len(registry.entries()) == 2)
        registry.pin("late")
        await until(lambda: client.pinned_versions == (registry.entry("late").digest,))
