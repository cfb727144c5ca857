"""Uploads go to the disk as they come: bounded, tidy after every end, and slow for nobody."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from multiflora.adapters.registry import Registry
from multiflora.server.limits import Limits
from multiflora.server.publishing import Publisher

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def leftovers(tmp_path: Path) -> Callable[[], list[Path]]:
    return lambda: [path for path in (tmp_path / "data" / "adapters").rglob("*") if path.is_file()]


def form(*fields: tuple[str, bytes], boundary: str = "x") -> dict[str, Any]:
    """A body by hand, so that it may be wrong."""
    body = b"".join(
        b'--%s\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), content)
        for name, content in fields
    )
    return {
        "content": body + b"--%s--\r\n" % boundary.encode(),
        "headers": {"content-type": f"multipart/form-data; boundary={boundary}"},
    }


FILES = (("config", b"{}"), ("weights", b"x"))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form(("name", b"a")), "invalid_upload", "weights"),
        (form(("name", b"a"), ("config", b"{}")), "invalid_upload", "weights"),
        (form(("name", b"a"), ("weights", b"x")), "invalid_upload", "config"),
        (form(("name", b"a"), *FILES, ("archive", b"x")), "invalid_upload", "archive"),
        (form(("name", b"a"), ("file", b"x")), "unknown_parameter", "file"),
        (form(("name", b"a"), ("name", b"b")), "invalid_upload", "name"),
        (form(("name", b"a" * 2000)), "invalid_upload", "name"),
        (form(("name", b"a"), ("config", b"x" * (MIB + 1))), "invalid_upload", "config"),
        (form(("activate", b"no"), ("name", b"a"), *FILES), "invalid_request", "activate"),
        ({**form(("name", b"a"), *FILES), "content": b"--x\r\n"}, "invalid_upload", None),
        ({**form(), "content": b"no form at all"}, "invalid_upload", None),
        ({**form(), "content": b""}, "invalid_upload", None),
        ({"json": {"name": "a"}}, "invalid_upload", None),
        (
            {"content": b"", "headers": {"content-type": "multipart/form-data"}},
            *("invalid_upload", None),
        ),
    ],
)
async def test_a_form_that_is_not_the_right_one(client, leftovers, body, code, param):
    response = await client.post("/v1/adapters", **body)

    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (code, param)
    assert leftovers() == []


async def test_a_form_that_ends_in_the_middle(client, leftovers):
    whole = form(("name", b"a"), *FILES)
    for end in range(1, len(whole["content"]) - 4, 7):
        response = await client.post("/v1/adapters", **{**whole, "content": whole["content"][:end]})
        assert response.json()["error"]["code"] == "invalid_upload", end
    assert leftovers() == []


@pytest.fixture
def small_limits(service) -> None:
    limits = Limits(max_upload_bytes=2 * MIB, upload_idle_seconds=0.3)
    object.__setattr__(service, "limits", limits)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "chunked"])
async def test_an_upload_above_the_limit_is_413(url, leftovers, is_declared):
    body = form(("name", b"a"), ("weights", b"x" * 3 * MIB))

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body["content"]), 1 << 16):
            yield body["content"][start : start + (1 << 16)]

    content = body["content"] if is_declared else chunks()
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/adapters", content=content, headers=body["headers"])

    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert leftovers() == []


@pytest.mark.usefixtures("small_limits")
async def test_json_has_its_own_limit(service, url):
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.put(
            "/v1/adapters/a", content=b"x" * 9 * MIB, headers={"content-type": "application/json"}
        )
    assert response.status_code == 413


@pytest.mark.usefixtures("small_limits")
async def test_a_client_that_stands_still_is_told_and_tidied_up(url, leftovers):
    host, port = url.removeprefix("http://").split(":")
    body = form(("name", b"a"), *FILES)
    head = (
        "POST /v1/adapters HTTP/1.1\r\nhost: x\r\n"
        f"content-type: {body['headers']['content-type']}\r\n"
        f"content-length: {len(body['content'])}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body["content"][:100])
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"upload_timeout" in answer
    assert leftovers() == []


async def test_a_client_that_leaves_leaves_nothing(url, leftovers):
    host, port = url.removeprefix("http://").split(":")
    body = form(("name", b"a"), ("config", b"{}"), ("weights", b"x" * MIB))
    head = (
        f"POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: "
        f"{body['headers']['content-type']}\r\ncontent-length: {len(body['content'])}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        await asyncio.to_thread(connection.sendall, head.encode() + body["content"][: MIB // 2])
        await asyncio.sleep(0.2)
        assert leftovers() != []
    async with asyncio.timeout(10):
        while leftovers():
            await asyncio.sleep(0.02)


async def test_a_large_upload_takes_no_memory_and_stops_nobody(url, write_adapter, leftovers):
    """192 MiB of weights that the gate refuses in the end."""
    config = (write_adapter() / "adapter_config.json").read_bytes()
    start, end = form(("name", b"a"), ("config", config), ("weights", b"|"))["content"].split(b"|")
    size = 192

    async def chunks() -> AsyncIterator[bytes]:
        yield start
        for _ in range(size):
            yield bytes(MIB)
        yield end

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        headers = form()["headers"]
        upload = asyncio.create_task(client.post("/v1/adapters", content=chunks(), headers=headers))
        while not upload.done():
            began = asyncio.get_running_loop().time()
            assert (await client.get("/live")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.02)
        response = upload.result()

    assert response.json()["error"]["code"] == "invalid_file"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 48, f"{grown} MiB more"
    assert slowest < 0.5
    assert leftovers() == []


async def test_uploads_at_once_of_one_name_make_one_of_them(client, write_adapter, registry):
    folder = write_adapter()
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }

    async def post() -> int:
        response = await client.post("/v1/adapters", data={"name": "a"}, files=files)
        return response.status_code

    statuses = await asyncio.gather(*(post() for _ in range(6)))

    assert sorted(statuses) == [201, *[409] * 5]
    assert registry.candidates() == ()
    registry.collect()
    assert registry.store.digests() == (registry.entry("a").digest,)


async def test_a_full_disk_is_503_and_changes_nothing(
    client, write_adapter, registry, monkeypatch, leftovers
):
    def full(self, digest, staged):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(registry.store), "put", full)
    folder = write_adapter()
    files = {
        "config": json.dumps(json.loads((folder / "adapter_config.json").read_text())).encode(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    response = await client.post("/v1/adapters", data={"name": "a"}, files=files)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "disk_full")
    assert "retry-after" in response.headers
    assert registry.entries() == ()
    assert leftovers() == []
