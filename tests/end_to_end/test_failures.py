"""Engines die, clients leave, operators stop the server: nobody is left hanging."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

LONG = {
    "model": "rank-3",
    "prompt": list(range(20, 40)),
    "max_tokens": 450,
    "temperature": 0,
    "ignore_eos": True,
}


def _is_idle(server: Any) -> bool:
    return server.metric("multiflora_kv_blocks_used") == 0 and (
        server.metric("multiflora_adapter_leases") == 0
    )


def _read_stream(server: Any, body: dict[str, Any], started: threading.Event) -> str:
    lines = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as r:
        for line in r.iter_lines():
            lines.append(line)
            started.set()
    return "\n".join(lines)


def test_a_killed_engine_under_load_comes_back_without_help(
    start_server: Callable[..., Any], tiny_arguments: list[str]
) -> None:
    server = start_server(*tiny_arguments)
    before = server.client.completions.create(**_client_call(20)).choices[0].text
    started = [threading.Event() for _ in range(4)]
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(_read_stream, server, LONG, event) for event in started]
        whole = pool.submit(httpx.post, f"{server.url}/v1/completions", json=LONG, timeout=60)
        for event in started:
            assert event.wait(30)
        killed = server.engine
        os.kill(killed.pid, signal.SIGKILL)
        for stream in streams:
            text = stream.result(30)
            assert '"code":"engine_died"' in text.replace(" ", "")
        assert whole.result(30).status_code == 503
    ready = httpx.get(f"{server.url}/ready")
    assert ready.status_code == 503
    assert httpx.get(f"{server.url}/live").status_code == 200
    refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    server.wait(server.is_ready)
    assert server.engine.pid != killed.pid
    assert server.client.completions.create(**_client_call(20)).choices[0].text == before
    assert _is_idle(server)


def _client_call(count: int) -> dict[str, Any]:
    body = {key: LONG[key] for key in ("model", "prompt", "temperature")}
    return {**body, "max_tokens": count, "extra_body": {"ignore_eos": True}}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_blocks(stream: bool, tiny_server: Any) -> None:
    finished = tiny_server.metric("multiflora_aborts_total")
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        (_leave_stream if stream else _leave_whole)(client, tiny_server)
    tiny_server.wait(lambda: _is_idle(tiny_server), 5)
    assert tiny_server.metric("multiflora_aborts_total") == finished + 1


def _leave_whole(client: httpx.Client, server: Any) -> None:
    """Give up while the engine, however fast, has begun and cannot end."""
    engine = server.engine
    pause = threading.Timer(0.05, engine.suspend)
    pause.start()
    try:
        client.post(f"{server.url}/v1/completions", json={**LONG, "stream": False}, timeout=0.5)
    finally:
        pause.join()
        engine.resume()


def _leave_stream(client: httpx.Client, server: Any) -> None:
    with client.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}) as r:
        next(r.iter_lines())
        raise httpx.ReadTimeout("had enough")


def test_a_stop_signal_drains_and_exits_zero(
    start_server: Callable[..., Any], tiny_arguments: list[str]
) -> None:
    server = start_server(*tiny_arguments)
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(_read_stream, server, {**LONG, "max_tokens": 200}, started)
        assert started.wait(30)
        server.engine.suspend()  # The stream does not end while the door is looked at.
        server.process.send_signal(signal.SIGTERM)
        server.wait(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        server.engine.resume()
        text = stream.result(60)
    assert text.rstrip().endswith("data: [DONE]")
    assert '"error"' not in text
    assert server.process.wait(30) == 0


def test_a_second_signal_exits_at_once(
    start_server: Callable[..., Any], tiny_arguments: list[str]
) -> None:
    server = start_server(*tiny_arguments)
    engine = server.engine
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(_read_stream, server, LONG, started)
        assert started.wait(30)
        # The stream does not end by itself.
        engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) != 0
        assert time.monotonic() - asked < 3
        with pytest.raises(httpx.TransportError):
            stream.result(10)
    with contextlib.suppress(psutil.NoSuchProcess):
        engine.resume()
    psutil.wait_procs([engine], timeout=10)
    assert not engine.is_running()


BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "malformed": (b'{"model": "base", "prompt": ', 400, "JSON"),
    "nan": (b'{"model": "base", "prompt": "x", "temperature": NaN}', 400, "JSON"),
    "wrong type": (b'{"model": "base", "prompt": "x", "max_tokens": "many"}', 400, "max_tokens"),
    "empty prompt": (b'{"model": "base", "prompt": ""}', 400, "prompt"),
    "empty list": (b'{"model": "base", "prompt": []}', 400, "prompt"),
    "token out of range": (b'{"model": "base", "prompt": [1, 99999]}', 400, "99999"),
    "negative token": (b'{"model": "base", "prompt": [-5]}', 400, "prompt"),
    "a million answers": (b'{"model": "base", "prompt": "x", "n": 1000000}', 400, "n"),
    "unknown model": (b'{"model": "bse", "prompt": "x"}', 404, "bse"),
    "too long": (b'{"model": "base", "prompt": "x", "max_tokens": 512}', 400, "512"),
    "ten megabytes": (b'{"model": "base", "prompt": "' + b"x" * 10_000_000 + b'"}', 413, "at most"),
    "not an object": (b"[]", 400, "object"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_input_is_a_clear_error_and_the_server_goes_on(case: str, tiny_server: Any) -> None:
    content, status, word = BAD_BODIES[case]
    answer = httpx.post(
        f"{tiny_server.url}/v1/completions",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word.lower() in (error["message"] + str(error["param"])).lower()
    assert isinstance(error["code"], str)
    good = tiny_server.client.completions.create(model="base", prompt="the quick", max_tokens=2)
    assert good.usage.completion_tokens <= 2


def test_the_openai_client_sees_typed_errors(tiny_server: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        tiny_server.client.chat.completions.create(
            model="nobody", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        tiny_server.client.completions.create(model="base", prompt="x", max_tokens=600)
    assert bad.value.code == "context_length_exceeded"
