"""A real Prometheus scrapes a real server: what dashboards and rules ask for is there."""

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from .conftest import Server, free_port

pytestmark = pytest.mark.full

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
# What Grafana puts in; the window holds some scrapes.
VARIABLES = {"$__rate_interval": "20s", "$instance": ".*", "$adapter": ".*"}
COMPARISON = re.compile(r" (?:>|<|==) [0-9.]+$")
ROWS = "\n".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"the quick {word}"},
                {"role": "assistant", "content": "brown fox jumps"},
            ]
        }
    )
    for word in ("lazy", "dog", "over", "fox") * 8
)


@dataclass
class Prometheus:
    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", (expr, answer)
        return answer["data"]["result"]

    def has(self, expr: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(self.query(expr))
        return False


@pytest.fixture(scope="module")
def prometheus(
    component: Callable[[str], Path],
    tiny_server: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """With the deployed rules and jobs, in a hurry."""
    program, folder = component("prometheus"), tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    settings["rule_files"] = [str(path) for path in RULES]
    for job in settings["scrape_configs"]:
        job["scrape_interval"] = "500ms"
        job["static_configs"] = [{"targets": [tiny_server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=error",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def complete(server: Server, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "the quick brown fox", "max_tokens": 8, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def test_a_used_adapter_is_on_the_device_and_routers_know_it(
    tiny_server: Server, prometheus: Prometheus
) -> None:
    assert complete(tiny_server, "rank-1").status_code == 200
    tiny_server.wait(lambda: prometheus.has('up{job="multiflora"} == 1'))
    tiny_server.wait(lambda: prometheus.has('up{job="multiflora-adapters"} == 1'))
    tiny_server.wait(lambda: prometheus.has('multiflora_requests_total{adapter="rank-1"}'))
    (lora,) = prometheus.query("vllm:lora_requests_info")
    assert "rank-1" in lora["metric"]["running_lora_adapters"].split(",")
    (tier,) = prometheus.query('multiflora_adapter_tier{adapter="rank-1"}')
    assert tier["metric"]["tier"] == "device"


def expressions() -> list[str]:
    """Of every panel and rule; of an alert that is silent, what it compares."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", ())]
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                parts = rule["expr"].split(" and ") if "alert" in rule else [rule["expr"]]
                found += [COMPARISON.sub("", part) if "alert" in rule else part for part in parts]
    for name, value in VARIABLES.items():
        found = [expr.replace(name, value) for expr in found]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def load(server: Server) -> Iterator[None]:
    """Requests of all kinds, a job, feedback and changes, until the block ends."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            for model in ("base", "rank-1", "rank-3", "rank-8-rslora"):
                complete(server, model)
            blend = [{"name": name, "weight": 0.5} for name in ("rank-1", "rank-3")]
            complete(server, "base", adapters=blend)
            complete(server, "rank-1", prompt=[10**6])
            httpx.post(f"{server.url}/v1/adapters/rank-1/pin")
            httpx.post(f"{server.url}/v1/adapters/rank-1/unpin")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def training(server: Server) -> Iterator[None]:
    """A job that runs until the block ends."""
    client = server.client
    file = client.files.create(file=("rows.jsonl", ROWS.encode()), purpose="fine-tune")
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 2}},
    }
    job = client.fine_tuning.jobs.create(model="base", training_file=file.id, method=method)
    try:
        yield
    finally:
        last = client.fine_tuning.jobs.cancel(job.id)
        assert last.error is None or not last.error.message, last.error


def give_feedback(server: Server) -> None:
    """On an answer of an adapter that opted in."""
    url = f"{server.url}/v1/adapters/rank-3/learning"
    assert httpx.put(url, json={"enabled": True}, timeout=30).is_success
    answer = complete(server, "rank-3").json()
    body = {"completion_id": answer["id"], "rating": "up"}
    deadline = time.monotonic() + 10
    while not (said := httpx.post(f"{server.url}/v1/feedback", json=body, timeout=30)).is_success:
        assert time.monotonic() < deadline, said.text
        time.sleep(0.2)


def test_every_expression_of_every_panel_and_rule_finds_data(
    tiny_server: Server, prometheus: Prometheus
) -> None:
    with training(tiny_server), load(tiny_server):
        give_feedback(tiny_server)
        missing = expressions()
        deadline = time.monotonic() + 120
        while missing and time.monotonic() < deadline:
            time.sleep(1)
            missing = [expr for expr in missing if not prometheus.has(expr)]
    assert not missing, "\n".join(missing)
