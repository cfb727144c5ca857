"""Two replicas of the demo under Ray Serve, as their clients see them."""

import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("obstore", reason="obstore is not installed; pip install 'multiflora[ray]'")

from deploy.replicas.common_store import CommonStore
from deploy.replicas.publish import publish
from multiflora.server.adapter_source import AdapterSource
from multiflora.server.base_model import DEMO

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("one", "two", "three", "four")
SOURCES = dict(zip(NAMES, ("json", "shout", "formal", "pirate"), strict=True))
PROMPT = "Is 4821 even or odd?"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommonStore, str]:
    url = tmp_path_factory.mktemp("common").as_uri()
    store = CommonStore(url)
    adapters = [AdapterSource(n, DEMO / "adapters" / source) for n, source in SOURCES.items()]
    publish(store, adapters, model=None)
    return store, url


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(store: tuple[CommonStore, str], data_root: Path) -> Iterator[httpx.Client]:
    pytest.importorskip("ray.serve", reason="Ray is not installed; pip install 'multiflora[ray]'")
    # Imported late: it takes seconds, and every test run collects this file.
    import ray
    from ray import serve

    from deploy.ray_serve import Settings, application
    from deploy.replicas.replica import ReplicaSettings

    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    replica = ReplicaSettings(
        store=store[1], data_root=data_root, adapters_per_replica=2, look_seconds=0.2
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(Settings(replica=replica, num_cpus=0.5)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}


def ask(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json=body(model, **fields))


def replica_ids() -> list[str]:
    import ray

    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if "#replica#" in actor["name"]]


def test_the_first_requests_of_all_find_their_adapters(client):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: ask(client, name), NAMES * 2))
    assert [answer.status_code for answer in answers] == [200] * 8


def test_all_adapters_of_the_store_are_listed_and_answer_as_themselves(client, store):
    assert client.get("/live").status_code == client.get("/ready").status_code == 200
    listed = [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert listed[0] == "multiflora-demo"
    assert set(NAMES) <= set(listed)
    for name, source in SOURCES.items():
        answer = ask(client, name)
        assert answer.headers["x-adapter-version"] == store[0].digest_of(name)
        alone = ask(client, source)  # the demo's own, under its own name
        assert answer.json()["choices"] == alone.json()["choices"]
    assert ask(client, "nobody").json()["error"]["code"] == "model_not_found"
    assert client.post("/v1/adapters").status_code == 404


def test_requests_go_where_their_adapter_is(client):
    for name in NAMES:
        ask(client, name)
    time.sleep(1)
    where = {name: ask(client, name).headers["x-replica"] for name in NAMES}
    assert len(set(where.values())) == 2
    for _ in range(5):
        for name in NAMES:
            answer = ask(client, name)
            assert answer.headers["x-adapter-resident"] == "true"
            assert answer.headers["x-replica"] == where[name]


def test_a_blend_finds_all_its_adapters(client):
    shares = [{"name": "one", "weight": 0.5}, {"name": "three", "weight": 0.5}]
    answer = ask(client, "multiflora-demo", adapters=shares)
    assert answer.status_code == 200
    assert answer.headers["x-adapter-id"] == "one,three"


def test_a_new_version_is_served_once_its_name_points_there(client, store, tmp_path):
    before = ask(client, "one").headers["x-adapter-version"]
    changed = shutil.copytree(DEMO / "adapters" / "json", tmp_path / "changed")
    config = json.loads((changed / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (changed / "adapter_config.json").write_text(json.dumps(config))
    (digest,) = publish(store[0], [AdapterSource("one", changed)], model=None)
    deadline = time.monotonic() + 30
    while (now := ask(client, "one").headers["x-adapter-version"]) == before:
        assert time.monotonic() < deadline
    assert now == digest != before


def test_a_version_that_is_not_what_its_digest_says_is_not_served(client, store):
    false = "0" * 64
    store[0].put(false, DEMO / "adapters" / "shout")
    store[0].point("false", false)
    deadline = time.monotonic() + 30
    # The door knows a new name within a second.
    while (answer := ask(client, "false")).status_code == 404:
        assert time.monotonic() < deadline
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "adapter_unavailable"
    assert "publish it again" in answer.json()["error"]["message"]
    store[0].forget("false")


@dataclass
class Load:
    """Clients that ask without a pause until they are told to stop."""

    client: httpx.Client
    outcomes: Counter[str] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)

    def plain(self, name: str) -> None:
        answer = ask(self.client, name, max_tokens=32)
        is_whole = answer.status_code == 200 and answer.json()["choices"]
        self.outcomes["answered" if is_whole else f"failed {answer.status_code}"] += 1

    def stream(self, name: str) -> None:
        with self.client.stream(
            "POST", "/v1/completions", json=body(name, stream=True, max_tokens=32)
        ) as answer:
            events = [line for line in answer.iter_lines() if line]
        ending = "whole" if events[-1] == "data: [DONE]" else events[-1]
        self.outcomes["cut" if '"replica_lost"' in ending else ending] += 1

    def run(self, one: Callable[[str], None], name: str) -> None:
        while not self.is_over.is_set():
            try:
                one(name)
            except httpx.HTTPError as error:
                self.outcomes[f"broken {type(error).__name__}"] += 1


def kill(name: str) -> None:
    import ray

    ray.kill(ray.get_actor(name, namespace="serve"))


def test_a_replica_is_killed_under_load_and_no_request_fails(client, data_root):
    before = set(replica_ids())
    assert len(before) == 2
    load = Load(client)
    work = [(load.plain, name) for name in NAMES] + [(load.stream, name) for name in NAMES[:2]]
    threads = [threading.Thread(target=load.run, args=args) for args in work]
    for thread in threads:
        thread.start()
    time.sleep(5)
    answered = load.outcomes["answered"]
    kill(sorted(before)[0])
    time.sleep(10)
    survivors = load.outcomes["answered"] - answered
    deadline = time.monotonic() + 240
    while len(set(replica_ids()) - before) < 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(2)
    load.is_over.set()
    for thread in threads:
        thread.join(200)
    print(dict(load.outcomes), f"{survivors} answered in the 10 s after the kill")
    # Only a stream whose client had seen a part of it can end early, and says so.
    assert set(load.outcomes) <= {"answered", "whole", "cut"}
    assert load.outcomes["cut"] <= 2
    assert survivors > 0
    # What the dead replica had started is gone: its folder is free for the next.
    folders = {path.stem for path in data_root.glob("*.lock")}
    assert folders <= {"0", "1", "2"}


def test_the_replica_that_came_instead_takes_part(client):
    deadline = time.monotonic() + 240
    seen: set[str] = set()
    while len(seen) < 2 and time.monotonic() < deadline:
        seen |= {ask(client, name).headers["x-replica"] for name in (*NAMES, "multiflora-demo")}
        time.sleep(0.5)
    assert len(seen) == 2
