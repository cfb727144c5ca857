"""One engine under Ray Serve: an ordinary server of its own, and the adapters that it has ready.

Ray Serve's multiplexing decides which adapters those are, tells its routers, and drops the one used
longest ago for another. What it keeps is pinned on the device, so the two never disagree.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import httpx
from obstore.exceptions import BaseError
from ray import serve

from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME

from .call import Call, Head, Headers, ServerLost, error_body, onward
from .common_store import CommonStore
from .server_child import ServerChild

_KEY_VARIABLE: Final = "MULTIFLORA_API_KEY"
RESIDENT_HEADER: Final = "x-adapter-resident"
REPLICA_HEADER: Final = "x-replica"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """``flags`` are those of ``multiflora serve``; names are looked up again ``look_seconds`` after
    they were last.
    """

    store: str
    data_root: Path
    flags: tuple[str, ...] = ()
    adapters_per_replica: int = 8
    look_seconds: float = 2.0


class Resident:
    """An adapter that is pinned; Ray Serve calls ``__del__`` when it drops it, once or twice."""

    def __init__(self, name: str, digest: str, let_go: Callable[[str], None]) -> None:
        self.name = name
        self.digest = digest
        self.looked = time.monotonic()
        self.lock = asyncio.Lock()
        self._let_go: Callable[[str], None] | None = let_go

    def __del__(self) -> None:
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go(self.name)


class Replica:
    """What Ray Serve runs in every actor."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._store = CommonStore(settings.store)
        self._residents: set[str] = set()
        self._child = ServerChild(settings.flags, data_root=settings.data_root)
        self._child.wait_until_ready()
        self._unpin_all()
        self._id = serve.get_replica_context().replica_id.unique_id
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=self._child.url, timeout=None, limits=limits)
        self._adapter = self._multiplexed()

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose server has ended."""
        if not self._child.is_alive:
            raise RuntimeError("the server has ended")

    def __del__(self) -> None:
        self._child.stop()

    async def answer(self, call: Call) -> AsyncGenerator[Head | bytes]:
        """The head, then the body as it comes. Raises ``ServerLost``."""
        was_resident = all(name in self._residents for name in call.adapters)
        own = ((RESIDENT_HEADER, str(was_resident).lower()), (REPLICA_HEADER, self._id))
        try:
            if (refusal := await self._have_all(call.adapters)) is not None:
                status, body = refusal
                yield Head(status=status, headers=(("content-type", "application/json"), *own))
                yield body
                return
            async with self._client.stream(
                call.method, call.path, headers=call.headers, content=call.body
            ) as response:
                yield Head(status=response.status_code, headers=_headers(response) + own)
                async for piece in response.aiter_raw():
                    yield piece
        except httpx.TransportError as error:
            raise ServerLost(f"the server went away: {type(error).__name__}") from None

    async def _have_all(self, names: Sequence[str]) -> tuple[int, bytes] | None:
        """Status and body of the answer if that cannot be."""
        try:
            for name in names:
                await self._have(name)
        except httpx.HTTPStatusError as error:
            # What the server says of an adapter that it refuses or has no room for.
            return error.response.status_code, error.response.content
        except (OSError, ValueError, BaseError) as error:
            return 503, error_body(str(error), code="adapter_unavailable")
        return None

    async def _have(self, name: str) -> None:
        """Have the adapter on the device, at the version that the common store says."""
        resident = await self._adapter(name)
        async with resident.lock:
            if time.monotonic() - resident.looked < self._settings.look_seconds:
                return
            digest = await asyncio.to_thread(self._store.digest_of, name)
            if digest not in (None, resident.digest):
                await self._take_in(name, digest)
                resident.digest = digest
            resident.looked = time.monotonic()

    def _multiplexed(self) -> Callable[[str], Awaitable[Resident]]:
        async def load(name: str) -> Resident:
            digest = await asyncio.to_thread(self._store.digest_of, name)
            if digest is None:
                raise ValueError(f"the common store has no adapter {name!r} any more")
            await self._take_in(name, digest)
            (await self._own("POST", f"/v1/adapters/{name}/pin")).raise_for_status()
            self._residents.add(name)
            return Resident(name, digest, self._let_go)

        # A plain function: Ray Serve keeps its state as an attribute of what it is given.
        decorate = serve.multiplexed(max_num_models_per_replica=self._settings.adapters_per_replica)
        return cast(Callable[[str], Awaitable[Resident]], decorate(load))

    async def _take_in(self, name: str, digest: str) -> None:
        """Publish the version on this replica's server, which checks it, if it is not there."""
        shown = await self._own("GET", f"/v1/adapters/{name}")
        if shown.is_success and shown.json()["version"] == digest:
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            await asyncio.to_thread(self._store.fetch, digest, folder)
            with (
                (folder / CONFIG_NAME).open("rb") as config,
                (folder / WEIGHTS_NAME).open("rb") as weights,
            ):
                files = {"config": config, "weights": weights}
                done = await self._own("PUT", f"/v1/adapters/{name}", files=files)
        done.raise_for_status()
        if (found := done.json()["version"]) != digest:
            await self._own("DELETE", f"/v1/adapters/{name}")
            raise ValueError(
                f"version {digest[:12]} of the common store is {found[:12]} by its content; "
                "publish it again, for the base that is served"
            )

    async def _own(self, method: str, path: str, **content: object) -> httpx.Response:
        return await self._client.request(method, path, headers=_own_headers(), **content)  # type: ignore[arg-type]

    def _let_go(self, name: str) -> None:
        """Unpin, from a thread: requests that run keep the version by their leases."""
        self._residents.discard(name)
        with self._blocking() as client, suppress(httpx.TransportError):
            client.post(f"/v1/adapters/{name}/unpin")

    def _unpin_all(self) -> None:
        """Drop what an earlier replica had ready; it is still here, and loads when asked for."""
        with self._blocking() as client:
            shown = client.get("/v1/adapters", params={"limit": 1000}).raise_for_status()
            for adapter in shown.json()["data"]:
                if adapter["pinned"]:
                    client.post(f"/v1/adapters/{adapter['name']}/unpin").raise_for_status()

    def _blocking(self) -> httpx.Client:
        return httpx.Client(base_url=self._child.url, headers=_own_headers(), timeout=60)


def _headers(response: httpx.Response) -> Headers:
    """Ray Serve's proxy adds the request's id itself, the same."""
    return onward(tuple((n, v) for n, v in response.headers.items() if n != "x-request-id"))


def _own_headers() -> Mapping[str, str]:
    """An administrator's key, where the replicas' servers have keys."""
    key = os.environ.get(_KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}
