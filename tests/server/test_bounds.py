"""Slow, deep and nosy clients: each bound ends the one request that is beyond it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.errors import RequestRejected
from multiflora.engine.log_line import LogFormatter, request_id
from multiflora.server.app import create_app
from multiflora.server.http_server import HttpServer
from multiflora.server.limits import Limits
from multiflora.server.listener import bind
from multiflora.server.schemas.body import MAX_DEPTH, check_depth
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio


@pytest.fixture
async def port(service: Service, engine: Any) -> Any:
    """A real server whose bounds are short."""
    limits = Limits(header_seconds=0.1, body_idle_seconds=0.1, max_connections=3)
    service = replace(service, limits=limits)
    listener = bind("127.0.0.1", 0)
    server = HttpServer(
        create_app(service),
        drain=service.drain,
        drain_timeout_seconds=1,
        stop_engine=engine.stop,
        limits=limits,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.close_gently()
    await serving


async def talk(port: int, *pieces: bytes) -> bytes:
    """Send and read until the server hangs up, or has nothing to say for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.01)
    try:
        return await asyncio.wait_for(reader.read(), 2)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "start", [b"", b"GET /health HTTP/1.1\r\nhost: x\r\n"], ids=["none", "half"]
)
async def test_headers_that_never_end_close_the_connection(port: int, start: bytes) -> None:
    assert await talk(port, start) == b""


async def test_a_body_that_stands_still_is_408(port: int) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n"
    answer = await talk(port, head, b'{"model": ')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"upload_timeout" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 99999999\r\n", b"413"),
        (b"X: y\r\n" * 200 + b"Content-Length: 9\r\n", b"431"),
        (b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n", b"400"),
    ],
    ids=["body", "headers", "framing"],
)
async def test_a_refused_body_that_never_comes_does_not_keep_the_connection(
    port: int, headers: bytes, status: bytes
) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n"

    assert (await talk(port, start)).split()[1] == status


@pytest.mark.parametrize("host", [b"a/../b", b"a?b", b"a b", b"a@b", b"\xff"])
async def test_a_host_that_is_none_is_refused(port: int, host: bytes) -> None:
    start = b"GET /live HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"

    assert b" 400 " in (await talk(port, start)).splitlines()[0]


async def test_a_kept_connection_may_be_idle_longer_than_headers_take(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/health")).status_code == 200
        await asyncio.sleep(0.2)
        assert (await client.get("/health")).status_code == 200


async def test_connections_beyond_the_bound_are_turned_away(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    assert (await talk(port)).startswith(b"HTTP/1.1 503")
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize("action", ["rollback", "canary", "promote", "import", "pin"])
async def test_only_uploads_may_be_larger_than_memory(
    client: httpx.AsyncClient, action: str
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(1 << 30)}

    answer = await client.post(f"/v1/adapters/json/{action}", content=b"{}", headers=headers)

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_answers_are_no_pages_and_no_origin_is_allowed(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/v1/models", "/nowhere"):
        headers = (await client.get(path, headers={"origin": "http://server"})).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]
    assert (await client.options("/v1/models")).status_code == 405


def test_depth_is_bounded_before_anything_walks_through_it() -> None:
    check_depth(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    check_depth(orjson.dumps({"a": "[" * 500 + '"\\'}))
    with pytest.raises(RequestRejected, match="deeper"):
        check_depth(b"[" * (MAX_DEPTH + 1))


@settings(max_examples=50)
@given(
    st.recursive(
        st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
)
def test_depth_counts_what_a_parser_would_find(value: Any) -> None:
    def depth(item: Any) -> int:
        inner = item.values() if isinstance(item, dict) else item
        return 1 + max(map(depth, inner), default=0) if isinstance(item, dict | list) else 0

    try:
        raw = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return
    wrapped = b"[" * (MAX_DEPTH - depth(value)) + raw
    check_depth(wrapped)
    with pytest.raises(RequestRejected):
        check_depth(b"[" + wrapped)


async def test_a_string_without_end_takes_linear_time() -> None:
    async with asyncio.timeout(5):
        check_depth(b'"' + b'\\"' * 4_000_000)
        check_depth(b'"' * 1_000_001 + b"\\")


def test_a_log_line_has_an_id_and_no_values(caplog: pytest.LogCaptureFixture) -> None:
    key = f"mf-0123456789ab-{'x' * 43}"
    token = request_id.set("req-7")
    try:
        raise ValueError("the prompt was: my secret")
    except ValueError:
        record = logging.LogRecord("a", 40, "p", 1, "key %s\nforged", (key,), None)
        import sys

        record.exc_info = sys.exc_info()
    text = LogFormatter().format(record)
    request_id.reset(token)
    assert "[req-7]" in text
    assert "ValueError at test_bounds.py:" in text
    assert "\n" not in text
    assert "secret" not in text
    assert key not in text
    assert "mf-0123456789ab-***" in text


async def test_what_goes_wrong_in_a_request_is_logged_without_its_content(
    engine: Any, complete: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = lambda request: [ZeroDivisionError("my secret prompt")]
    await complete(prompt="my secret prompt")
    shown = [LogFormatter().format(record) for record in caplog.records]
    assert shown
    assert not any("secret" in line for line in shown)
