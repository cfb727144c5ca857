"""Start-up to exit with a scripted engine in place of the real one."""

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request

import pytest

from multiflora.engine.client import EngineClient
from multiflora.engine.errors import StartupError
from multiflora.server.serve import serve
from multiflora.server.settings import ServeSettings


@pytest.fixture
def settings(tmp_path, model):
    return ServeSettings(model=str(model), port=0, data_dir=tmp_path / "data")


@pytest.fixture
def scripted(monkeypatch, engine):
    """Put the scripted engine in; what is announced stands for what is printed."""
    monkeypatch.setenv("MULTIFLORA_LOG_LEVEL", "info")
    monkeypatch.setattr(EngineClient, "in_process_of_its_own", lambda config: engine)
    return engine


def test_it_announces_itself_serves_and_exits_0_on_a_signal(settings, scripted, capfd):
    answers = []

    def use():
        deadline = time.monotonic() + 20
        announced = ""
        while "ready at" not in announced and time.monotonic() < deadline:
            time.sleep(0.05)
            announced += capfd.readouterr().out
        url = announced.split("ready at ")[1].split()[0]
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            answers.append(json.load(answer))
        os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    code = serve(settings)
    user.join()

    assert code == 0
    assert [card["id"] for card in answers[0]["data"]] == ["model"]
    assert scripted.num_stops == 1


def test_a_failing_engine_start_ends_the_server(settings, scripted, monkeypatch):
    async def fail():
        raise StartupError("out of luck")

    monkeypatch.setattr(scripted, "start", fail)

    with pytest.raises(StartupError, match="out of luck"):
        serve(settings)
    assert scripted.num_stops == 1


def test_a_signal_during_loading_ends_it_too(settings, scripted, monkeypatch):
    async def load_forever():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        await asyncio.sleep(60)

    monkeypatch.setattr(scripted, "start", load_forever)

    assert serve(settings) == 0
