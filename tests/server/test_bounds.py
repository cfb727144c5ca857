"""Slow, deep and nosy clients: each bound ends the one request that is beyond it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.errors import RequestRejected
from multiflora.engine.log_line import LogFormatter, request_id
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.app import create_app
from multiflora.server.held_body import HeldBodies
from multiflora.server.http_server import HttpServer
from multiflora.server.limits import Limits
from multiflora.server.listener import bind
from multiflora.server.refusal import QueueFull
from multiflora.server.schemas.body import MAX_DEPTH, check_depth
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
SCOPES = frozenset({Scope.INFERENCE})


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


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "status", "code"),
    [
        (b"nonsense\r\n\r\n", b"400", b"invalid_http"),
        (CHUNKED + b"z\r\n", b"400", b"invalid_http"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400", b"invalid_http"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400", b"invalid_http"),
        (b"GET /live HTTP/1.1\r\nX: " + b"y" * 300_000, b"431", b"request_too_large"),
    ],
    ids=["line", "chunk", "negative", "twice", "header"],
)
async def test_what_is_no_request_is_refused_in_the_usual_envelope(
    port: int, start: bytes, status: bytes, code: bytes
) -> None:
    head, _, body = (await talk(port, start)).partition(b"\r\n\r\n")

    assert head.split()[1] == status
    assert b"connection: close" in head
    assert orjson.loads(body)["error"]["code"] == code.decode()


async def test_a_body_of_a_million_tiny_chunks_is_given_up(port: int) -> None:
    """Each costs what a large one costs."""
    answer = await talk(port, CHUNKED + b"1\r\na\r\n" * 10_000)

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"chunks for" in answer


async def test_tiny_chunks_that_nobody_wants_are_given_up_too(port: int) -> None:
    start = CHUNKED.replace(b"/v1/completions", b"/nowhere")

    answer = await talk(port, start, b"1\r\na\r\n" * 2000, b"1\r\na\r\n" * 2000)

    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 404")


async def test_chunks_of_a_decent_size_are_no_waste(port: int) -> None:
    body = orjson.dumps({"model": "base", "prompt": "a " * 300_000, "max_tokens": 1})
    pieces = [body[start : start + 200] for start in range(0, len(body), 200)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)

    start = CHUNKED.replace(b"Host: a", b"Host: a\r\nConnection: close")
    answer = await talk(port, start + chunks + b"0\r\n\r\n")

    assert b"context_length_exceeded" in answer


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


async def test_bodies_in_memory_are_bounded_and_no_key_has_all(service: Service) -> None:
    limits = Limits(max_held_bytes=1000)
    app = create_app(replace(service, limits=limits))
    keys = [service.keyring.registry.create(KeyWish(name="x", scopes=SCOPES))[1] for _ in "ab"]
    transport = httpx.ASGITransport(app=app)
    may_end = asyncio.Event()

    async def slow_body() -> Any:
        yield b'{"model": "nobody", "prompt": "' + b"a" * 400
        await may_end.wait()
        yield b'"}'

    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

        async def ask(key: str, content: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            return await client.post("/v1/completions", content=content, headers=headers)

        held = asyncio.create_task(ask(keys[0], slow_body()))
        await asyncio.sleep(0.05)
        refused = await ask(keys[0], b"a" * 200)
        other = await ask(keys[1], b"a" * 200)
        may_end.set()
        assert (await held).status_code == 404
        after = await ask(keys[0], b"a" * 200)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) == 1
    assert [answer.json()["error"]["code"] for answer in (other, after)] == ["invalid_json"] * 2


@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["", "a", "b"])), max_size=20))
def test_what_bodies_held_is_given_back_to_the_byte(pieces: list[tuple[int, str]]) -> None:
    held = HeldBodies(100)
    by_key: Counter[str] = Counter()
    with ExitStack() as stack:
        for size, key in pieces:
            take = stack.enter_context(held.body())
            try:
                take(size, key)
                by_key[key] += size
            except QueueFull:
                assert by_key.total() + size > 100 or (key and by_key[key] + size > 50)
        assert held.num_bytes == by_key.total() <= 100
        assert max(by_key["a"], by_key["b"]) <= 50
    assert held.num_bytes == 0
    with held.body() as take:
        take(50, "a")
        take(50, "")


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
