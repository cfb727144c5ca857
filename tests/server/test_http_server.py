"""Signals, in a process of its own."""

import signal
import subprocess
import sys
import urllib.request

import pytest

SCRIPT = """
import asyncio, sys
from multiflora.server.drain import Drain
from multiflora.server.http_server import HttpServer
from multiflora.server.listener import bind, url_of

drain = Drain()

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    with drain.running():
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(float(sys.argv[1]))
        await send({"type": "http.response.body", "body": b"y"})

async def stop(): ...

async def main():
    listener = bind("127.0.0.1", 0)
    server = HttpServer(app, drain=drain, drain_timeout_seconds=20, stop_engine=stop)
    print(url_of(listener), flush=True)
    await server.serve(sockets=[listener])

asyncio.run(main())
"""


@pytest.fixture
def start():
    """Start a server whose answers take so many seconds; returns it and an answer begun."""
    started = []

    def start(seconds):
        server = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(seconds)], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout
        answer = urllib.request.urlopen(server.stdout.readline().strip(), timeout=10)
        started.append((server, answer))
        assert answer.read(1) == b"x"
        return server, answer

    yield start
    for server, answer in started:
        answer.close()
        server.kill()
        server.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_finishes_what_runs_and_exits_0(start, number):
    server, answer = start(0.5)

    server.send_signal(number)

    assert answer.read() == b"y"
    assert server.wait(timeout=10) == 0


def test_a_second_signal_exits_at_once(start):
    server, _ = start(15)

    server.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(timeout=0.3)
    server.send_signal(signal.SIGTERM)

    assert server.wait(timeout=2) == 128 + signal.SIGTERM
