"""Adapters come, change and go under load, over crashes of the engine and of the whole server.

The demo's adapters answer in four manners, and greedy answers are the same in any company, so the
text of an answer says which version gave it.
"""

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

import multiflora

from .conftest import HTTP
from .storm import QUESTIONS, Storm, ask_body

DEMO = Path(multiflora.__file__).parent / "engine" / "demo" / "adapters"
MANNERS = ("formal", "json", "pirate", "shout")
RANKS = (8, 16, 32, 64)
# Room for some of the versions of all manners and ranks.
CRAMPED = "10MB"
# Of the weights that fill an adapter up: enough to change what is said.
_NOISE = 0.2


@cache
def files(manner: str, rank: int | None = None) -> dict[str, bytes]:
    """An adapter of the demo, filled up with noise to ``rank`` at least: it says other things."""
    config = json.loads((DEMO / manner / "adapter_config.json").read_bytes())
    tensors = load_file(DEMO / manner / "adapter_model.safetensors")
    if rank is not None and rank > config["r"]:
        more = rank / config["r"]
        config["lora_alpha"] *= math.sqrt(more) if config["use_rslora"] else more
        config["r"] = rank
        for name, tensor in tensors.items():
            wanted = (rank, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], rank)
            noise = torch.randn(wanted, generator=torch.Generator().manual_seed(rank))
            tensors[name] = (_NOISE * noise).to(tensor.dtype)
            tensors[name][: tensor.shape[0], : tensor.shape[1]] = tensor
    return {"config": json.dumps(config).encode(), "weights": save(tensors)}


def ask(url: str, model: str, question: str = QUESTIONS[0], **fields: Any) -> tuple[str, str]:
    """The answer and the version that gave it."""
    body = ask_body(model, question, **fields)
    response = HTTP.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["message"]["content"]
    return content, response.headers.get("x-adapter-version", "")


def put(url: str, name: str, manner: str, rank: int | None = None, **data: str) -> dict[str, Any]:
    parts = files(manner, rank)
    response = HTTP.put(f"{url}/v1/adapters/{name}", files=parts, data=data, timeout=60)
    assert response.status_code in (200, 201), response.text
    return response.json()


def move(url: str, name: str, action: str, **body: Any) -> dict[str, Any]:
    response = HTTP.post(f"{url}/v1/adapters/{name}/{action}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def adapters(url: str) -> dict[str, dict[str, Any]]:
    listed = HTTP.get(f"{url}/v1/adapters", params={"limit": 1000}, timeout=30).json()["data"]
    return {adapter["name"]: adapter for adapter in listed}


def is_quiet(server: Any) -> bool:
    """No lease on either side of the process boundary, no block held."""
    return (
        all(adapter["leases"] == 0 for adapter in adapters(server.url).values())
        and server.metric("multiflora_adapter_leases") == 0
        and server.metric("multiflora_kv_blocks_used") == 0
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def demo(start_server: Callable[..., Any], root: Path) -> Any:
    return start_server("--device", "cpu", "--adapters-root", str(root))


@pytest.fixture(scope="module")
def expected(demo: Any) -> dict[tuple[str, str], str]:
    """What each version says, by (version, question)."""
    return what_is_said(demo.url, MANNERS)


def what_is_said(url: str, names: Sequence[str]) -> dict[tuple[str, str], str]:
    said: dict[tuple[str, str], str] = {}
    for name, question in itertools.product(names, QUESTIONS):
        text, version = ask(url, name, question)
        said[version, question] = text
    same = {text for text, count in Counter(said.values()).items() if count > 1}
    assert not same, "an answer says to which question, and by which version"
    return said


def change(
    url: str,
    name: str,
    draw: random.Random,
    versions: list[str],
    shapes: Sequence[tuple[str, int | None]],
) -> None:
    """One swap, rollback or canary change of a name that keeps two versions at least."""
    kept = adapters(url)[name]["versions"]
    match draw.randrange(6):
        case 0:
            put(url, name, *draw.choice(shapes))
        case 1:
            canary = put(url, name, *draw.choice(shapes), activate="false")
            if canary["published"] != canary["version"]:
                move(url, name, "canary", version=canary["published"], weight=0.5)
        case 2:
            others = [version for version in versions if version != kept[0]]
            body = {"version": draw.choice(others), "weight": draw.choice((0.1, 0.5, 1.0))}
            HTTP.post(f"{url}/v1/adapters/{name}/canary", json=body)
        case 3 | 4:
            move(url, name, "rollback", version=draw.choice(kept))
        case 5:
            if adapters(url)[name]["canary"]:
                move(url, name, "promote")
            else:
                move(url, name, "rollback", version=kept[-1])


def storm(
    server: Any,
    expected: dict[tuple[str, str], str],
    *,
    names: int,
    rate: float,
    changes: int,
    pause: float = 0.0,
    ranks: Sequence[int | None] = (None,),
) -> dict[str, float]:
    """Ask at ``rate`` while adapters change ``changes`` times, every ``pause`` seconds at the most;
    returns what was measured."""
    url = server.url
    # Names begin with two versions that say different things, and so do all that follow them.
    shapes = [(manner, rank) for rank in ranks for manner in MANNERS]
    draw = random.Random(4)
    named = [f"storm-{number}" for number in range(names)]
    for number, name in enumerate(named):
        put(url, name, *shapes[number % len(shapes)])
        put(url, name, *shapes[(number + 1) % len(shapes)])
    versions = sorted({version for version, _ in expected})
    asking = Storm(url, named, expected, rate)
    is_over = threading.Event()
    thread = threading.Thread(target=asking.run, args=(is_over,))
    began = time.monotonic()
    thread.start()
    try:
        for number in range(changes):
            change(url, named[number % names], draw, versions, shapes)
            time.sleep(max(0.0, began + (number + 1) * pause - time.monotonic()))
        seconds = time.monotonic() - began
    finally:
        is_over.set()
        thread.join(120)
    assert not thread.is_alive(), "requests are still under way"
    assert not asking.wrong, (len(asking.wrong), asking.wrong[:5])
    assert asking.answered.total() == asking.num_asked
    assert set(asking.answered) == set(versions)
    server.wait(lambda: is_quiet(server), 10)
    for name in named:
        HTTP.delete(f"{url}/v1/adapters/{name}")
    return {
        "seconds": seconds,
        "requests": asking.answered.total(),
        "changes_per_second": changes / seconds,
        "requests_per_second": asking.answered.total() / (time.monotonic() - began),
    }


def test_no_request_fails_or_hears_the_wrong_version_while_adapters_change(
    demo: Any, expected: dict[tuple[str, str], str]
) -> None:
    measured = storm(demo, expected, names=6, rate=25, changes=60)
    print(measured)
    assert measured["requests"] > 60


@pytest.mark.full
def test_a_hundred_requests_per_second_while_twenty_names_change_and_versions_are_evicted(
    start_server: Callable[..., Any],
) -> None:
    memory = ("--adapter-memory", CRAMPED, "--adapter-memory-max", CRAMPED)
    server = start_server("--device", "cpu", *memory)
    names = [f"{manner}-{rank}" for manner, rank in itertools.product(MANNERS, RANKS)]
    for name in names:
        manner, rank = name.split("-")
        put(server.url, name, manner, int(rank))
    expected = what_is_said(server.url, names)
    before = server.metric("multiflora_adapter_evictions_total")
    measured = storm(server, expected, names=20, rate=100, changes=200, pause=0.15, ranks=RANKS)
    evictions = server.metric("multiflora_adapter_evictions_total") - before
    print(measured, f"{evictions:.0f} evictions")
    assert measured["requests"] > 1000
    assert evictions > 20


def test_the_documented_commands_work(demo: Any, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "adapters.md").read_text().replace("http://127.0.0.1:8000", demo.url)
    script = page.split("```bash\n")[1].split("```")[0]
    program = page.split("```python\n")[1].split("```")[0]

    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=root, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "poet/adapter_model.safetensors" in ran.stdout
    assert "poet" not in adapters(demo.url)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["json", adapters(demo.url)["json"]["version"]]


def test_a_blend_of_one_adapter_with_weight_0_is_the_base(demo: Any) -> None:
    base, _ = ask(demo.url, "multiflora-demo")
    alone, version = ask(demo.url, "shout")

    none, _ = ask(demo.url, "multiflora-demo", adapters=[{"name": "shout", "weight": 0.0}])
    whole, held = ask(demo.url, "multiflora-demo", adapters=[{"name": "shout", "weight": 1.0}])
    both = [{"name": "shout", "weight": 0.5}, {"name": "json", "weight": 0.5}]
    _, parents = ask(demo.url, "multiflora-demo", adapters=both)

    assert (none, whole, held) == (base, alone, version)
    assert parents.split(",")[0] == version
    demo.wait(lambda: is_quiet(demo), 10)


def test_loading_in_place_answers_with_the_new_weights_in_spite_of_the_prefix_cache(
    demo: Any, root: Path
) -> None:
    body = {"lora_name": "swapped", "lora_path": "swapped"}
    question = "How many words: " + "river boat lion " * 5
    texts = []
    for manner in ("shout", "json"):
        shutil.copytree(DEMO / manner, root / "swapped", dirs_exist_ok=True)
        loaded = HTTP.post(
            f"{demo.url}/v1/load_lora_adapter", json={**body, "load_inplace": True}, timeout=60
        )
        assert loaded.status_code == 200, loaded.text
        texts += [ask(demo.url, "swapped", question)[0] for _ in range(2)]
        assert texts[-1] == texts[-2] == ask(demo.url, manner, question)[0]
    assert texts[0] != texts[-1]
    HTTP.post(f"{demo.url}/v1/unload_lora_adapter", json={"lora_name": "swapped"})


def test_leases_end_with_the_engine(demo: Any, expected: dict[tuple[str, str], str]) -> None:
    """Streams that a dying engine cuts give their leases back exactly once."""
    long = ask_body("json", QUESTIONS[0], max_tokens=300, ignore_eos=True, stream=True)
    url = f"{demo.url}/v1/chat/completions"
    put(demo.url, "moving", "shout")
    with (
        httpx.stream("POST", url, json=long) as first,
        httpx.stream("POST", url, json=long) as other,
    ):
        lines = first.iter_lines()
        next(lines)
        assert adapters(demo.url)["json"]["leases"] == 2
        move(demo.url, "json", "pin")
        os.kill(demo.engine.pid, signal.SIGKILL)
        for rest in (list(lines), list(other.iter_lines())):
            assert any("engine_died" in line for line in rest)
    demo.wait(lambda: adapters(demo.url)["json"]["leases"] == 0, 10)
    put(demo.url, "moving", "json")
    demo.wait(demo.is_ready)
    text, version = ask(demo.url, "moving")
    assert text == expected[version, QUESTIONS[0]]
    demo.wait(lambda: adapters(demo.url)["json"]["state"] == "device", 10)
    demo.wait(lambda: is_quiet(demo), 10)


def test_a_killed_server_comes_back_with_whole_versions(
    start_server: Callable[..., Any], tmp_path: Path, expected: dict[tuple[str, str], str]
) -> None:
    """kill -9 of everything in the middle of changes: what was acknowledged is there."""
    draw = random.Random(9)
    names = ["one", "two"]
    acknowledged: dict[str, str] = {}
    for life in range(3):
        server = start_server("--device", "cpu", "--data-dir", str(tmp_path / "data"))
        found = adapters(server.url)
        assert set(names) <= set(found) or life == 0
        # The change under way when it died was made or was not; all others were.
        moved = [name for name, one in acknowledged.items() if found[name]["version"] != one]
        assert len(moved) <= 1
        for name in acknowledged:
            text, given = ask(server.url, name)
            assert given == found[name]["version"]
            assert text == expected[given, QUESTIONS[0]]
        acknowledged = _change_until_killed(server, names, draw)
    shutil.rmtree(tmp_path / "data")


def _change_until_killed(server: Any, names: list[str], draw: random.Random) -> dict[str, str]:
    """The version of each name after its last acknowledged change."""
    acknowledged = {name: put(server.url, name, draw.choice(MANNERS))["version"] for name in names}
    # Found now: while adapters are checked, the server has other children that come and go.
    processes = (server.process.pid, server.engine.pid)
    killer = threading.Timer(0.3 + draw.random(), _kill_all, processes)
    killer.start()
    try:
        for name in itertools.cycle(names):
            if draw.random() < 0.5:
                answer = put(server.url, name, draw.choice(MANNERS))
            else:
                kept = adapters(server.url)[name]["versions"]
                answer = move(server.url, name, "rollback", version=draw.choice(kept))
            acknowledged[name] = answer["version"]
    except (httpx.TransportError, KeyError):
        pass
    killer.join()
    server.process.wait(10)
    return acknowledged


def _kill_all(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)
