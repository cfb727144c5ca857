"""One client for both transports; the engine process may die and nobody hangs."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.tier import Tier
from multiflora.engine.client import EngineClient, EngineState
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.errors import EngineUnavailable, RequestFailed, StartupError
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams
from multiflora.engine.transport import ProcessTransport

Scenario = Callable[[EngineClient, str], Coroutine[Any, Any, None]]


@pytest.fixture
def config(model_folder: Callable[[str], Path], tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        base=BaseConfig(model=str(model_folder("llama")), dtype="float32"),
        device="cpu",
        data_dir=str(tmp_path),
        cache=CacheConfig(memory_bytes=8 << 20),
    )


@pytest.fixture
def digest(config: EngineConfig, adapter_folders: Callable[[str], dict[str, Path]]) -> str:
    return import_adapter(
        adapter_folders("llama")["rank-3"],
        projections=load_model_config(Path(config.base.model)).adapter_projections(),
        store=AdapterStore(Path(config.data_dir)),
    )


def request(id: str = "r", count: int = 6, *digests: str) -> GenerationRequest:
    return GenerationRequest(
        id=id,
        prompt=tuple(range(10, 40)),
        sampling=SamplingParams(max_tokens=count, temperature=0, ignore_eos=True),
        adapters=tuple(AdapterShare(digest) for digest in digests),
    )


async def answer(client: EngineClient, wanted: GenerationRequest) -> list[int]:
    return [token async for event in client.generate(wanted) for token in event.tokens]


def play(client: EngineClient, digest: str, scenario: Scenario) -> None:
    """Start, run ``scenario``, stop; the whole within a minute."""

    async def run() -> None:
        async with asyncio.timeout(60):
            await client.start()
            try:
                await scenario(client, digest)
            finally:
                await client.stop()

    asyncio.run(run())


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_both_transports_give_the_same_answers(config: EngineConfig, digest: str) -> None:
    answers: list[list[list[int]]] = []

    async def scenario(client: EngineClient, digest: str) -> None:
        requests = (request("a"), request("b", 6, digest))
        answers.append(list(await asyncio.gather(*(answer(client, r) for r in requests))))
        assert client.info.vocab_size == 384
        assert client.info.max_model_len == 512

    play(EngineClient.in_process_of_its_own(config), digest, scenario)
    play(EngineClient.in_this_process(config), digest, scenario)
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_closing_a_stream_early_frees_its_blocks(config: EngineConfig, digest: str) -> None:
    async def scenario(client: EngineClient, digest: str) -> None:
        stream = client.generate(request("r", 400, digest))
        await anext(stream)
        assert (await client.stats()).kv_blocks_used > 0
        await stream.aclose()
        stats = await client.stats()
        assert (stats.kv_blocks_used, stats.adapter_leases, client.num_streams) == (0, 0, 0)

    play(EngineClient.in_process_of_its_own(config), digest, scenario)


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back(
    config: EngineConfig, digest: str
) -> None:
    async def scenario(client: EngineClient, digest: str) -> None:
        transport = client.transport
        assert isinstance(transport, ProcessTransport)
        await client.load_version(digest)
        expected = await answer(client, request("before", 6, digest))
        streams = [client.generate(request(f"s{i}", 400, digest)) for i in range(3)]
        for stream in streams:
            await anext(stream)
        first_pid = transport.pid
        assert first_pid
        os.kill(first_pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(RequestFailed) as caught:
                async for _ in stream:
                    pass
            assert caught.value.code == "engine_died"
        await wait_until(lambda: client.state is not EngineState.READY)
        with pytest.raises(EngineUnavailable):
            await answer(client, request("refused"))
        with pytest.raises(EngineUnavailable):
            await client.stats()
        await wait_until(lambda: client.state is EngineState.READY)
        assert transport.pid != first_pid
        assert await answer(client, request("after", 6, digest)) == expected
        await wait_until(lambda: client.num_restarts == 1)
        assert digest in (await client.stats()).resident_versions

    play(EngineClient.in_process_of_its_own(config), digest, scenario)


def test_a_version_that_cannot_load_is_an_error_of_the_caller(
    config: EngineConfig, digest: str
) -> None:
    async def scenario(client: EngineClient, digest: str) -> None:
        with pytest.raises(AdapterRejected) as caught:
            await client.load_version("0" * 64)
        assert caught.value.code == "unknown_version"
        await asyncio.gather(client.load_version(digest), client.load_version(digest))
        assert (await client.stats()).resident_versions == (digest,)
        await client.unload_version(digest)
        await asyncio.sleep(0.05)
        assert (await client.stats()).resident_versions == ()

    play(EngineClient.in_process_of_its_own(config), digest, scenario)


def test_pins_outlive_the_engine(config: EngineConfig, digest: str) -> None:
    async def scenario(client: EngineClient, digest: str) -> None:
        transport = client.transport
        assert isinstance(transport, ProcessTransport)
        with pytest.raises(AdapterRejected):
            await client.pin("0" * 64)
        await client.pin(digest)
        assert await client.adapter_states() == {digest: Tier.DEVICE}
        assert transport.pid
        os.kill(transport.pid, signal.SIGKILL)
        await wait_until(lambda: client.state is not EngineState.READY)
        for call in (client.pin, client.warm):
            with pytest.raises(EngineUnavailable):
                await call(digest)
        with pytest.raises(EngineUnavailable):
            await client.adapter_states()
        await wait_until(lambda: client.num_restarts == 1)
        await wait_until(lambda: not client._pins)
        assert (await client.stats()).pinned_versions == (digest,)
        await client.unpin(digest)
        assert (await client.stats()).pinned_versions == client.pinned_versions == ()
        await client.warm(digest)
        assert await client.adapter_states() == {digest: Tier.DEVICE}

    play(EngineClient.in_process_of_its_own(config), digest, scenario)


def test_the_engine_process_ends_with_its_parents_socket(config: EngineConfig, digest: str) -> None:
    pids: list[int] = []

    async def scenario(client: EngineClient, digest: str) -> None:
        assert isinstance(client.transport, ProcessTransport)
        assert client.transport.pid
        pids.append(client.transport.pid)

    play(EngineClient.in_process_of_its_own(config), digest, scenario)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize("own_process", [True, False])
def test_an_engine_that_cannot_start_says_why(own_process: bool, tmp_path: Path) -> None:
    config = EngineConfig(
        base=BaseConfig(model=str(tmp_path / "nowhere")), data_dir=str(tmp_path), device="cpu"
    )
    make = EngineClient.in_process_of_its_own if own_process else EngineClient.in_this_process

    async def run() -> None:
        client = make(config)
        with pytest.raises(StartupError, match="nowhere"):
            await client.start()
        await client.stop()

    asyncio.run(run())


def test_a_client_that_was_never_started_refuses(config: EngineConfig) -> None:
    client = EngineClient.in_process_of_its_own(config)
    with pytest.raises(EngineUnavailable):
        _ = client.info

    async def run() -> None:
        with pytest.raises(EngineUnavailable, match="stopped"):
            await answer(client, request())

    asyncio.run(run())
