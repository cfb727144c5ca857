"""How many requests find their adapter ready, with affinity and with a router that draws lots?

Two applications under Ray Serve, each of two replicas of the demo that keep half of the adapters
ready, are asked the same requests block by block in turn. Needs pip install 'multiflora[ray]'.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import httpx
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from benchmarks.harness import save
from benchmarks.serving.server_process import free_port
from deploy.ray_serve import Settings, application
from deploy.replicas.common_store import CommonStore
from deploy.replicas.publish import publish
from deploy.replicas.replica import REPLICA_HEADER, RESIDENT_HEADER, ReplicaSettings
from multiflora.server.adapter_source import AdapterSource
from multiflora.server.base_model import DEMO

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PARENTS: Final = ("json", "shout", "formal", "pirate")
_RANDOM: Final[Any] = "benchmarks.serving.random_router.RandomRouter"
ROUTERS: Final = {
    "affinity": RequestRouterConfig(),
    "random": RequestRouterConfig(request_router_class=_RANDOM),
}


@dataclass
class Outcome:
    """What one router's requests met."""

    resident: int = 0
    requests: int = 0
    seconds: list[float] = field(default_factory=list)
    by_replica: dict[str, int] = field(default_factory=dict)

    def note(self, answer: httpx.Response, seconds: float) -> None:
        answer.raise_for_status()
        self.requests += 1
        self.resident += answer.headers[RESIDENT_HEADER] == "true"
        self.seconds.append(seconds)
        replica = answer.headers[REPLICA_HEADER]
        self.by_replica[replica] = self.by_replica.get(replica, 0) + 1

    def record(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "resident_share": round(self.resident / self.requests, 4),
            "median_seconds": round(statistics.median(self.seconds), 4),
            "p95_seconds": round(statistics.quantiles(self.seconds, n=20)[18], 4),
            "requests_by_replica": sorted(self.by_replica.values()),
        }


def make_adapters(root: Path, count: int) -> list[AdapterSource]:
    """``count`` adapters that differ in their strength, so in their content and digest."""
    made = []
    for index in range(count):
        folder = shutil.copytree(DEMO / "adapters" / PARENTS[index % 4], root / f"a{index}")
        config = json.loads((folder / "adapter_config.json").read_text())
        config["lora_alpha"] *= 1 + index / 100
        (folder / "adapter_config.json").write_text(json.dumps(config))
        made.append(AdapterSource(f"a{index}", folder))
    return made


def draw(options: argparse.Namespace) -> list[list[str]]:
    """Names by block; popularity falls with rank to the power of ``zipf``."""
    lots = random.Random(options.seed)
    names = [f"a{index}" for index in range(options.adapters)]
    weights = [1 / (index + 1) ** options.zipf for index in range(options.adapters)]
    return [lots.choices(names, weights, k=options.block) for _ in range(options.blocks)]


async def ask_all(url: str, names: list[str], outcome: Outcome, *, clients: int) -> None:
    waiting = list(reversed(names))

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            body = {"model": waiting.pop(), "prompt": "Is 4821 even or odd?", "max_tokens": 8}
            started = time.perf_counter()
            answer = await client.post("/v1/completions", json={**body, "temperature": 0})
            outcome.note(answer, time.perf_counter() - started)

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))


def start(root: Path, options: argparse.Namespace) -> str:
    """Both applications, each under the name of its router; returns the URL that they are below."""
    port = free_port()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    url = (root / "common").as_uri()
    publish(CommonStore(url), make_adapters(root / "made", options.adapters), model=None)
    for name, router in ROUTERS.items():
        replica = ReplicaSettings(
            store=url, data_root=root / name, adapters_per_replica=options.per_replica
        )
        settings = Settings(
            replica=replica, num_cpus=0.5, router=router, prefers_residents=name == "affinity"
        )
        serve.run(application(settings), name=name, route_prefix=f"/{name}")
        print(f"{name} is up", file=sys.stderr)
    return f"http://127.0.0.1:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--per-replica", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6, help="of each router, in turn")
    parser.add_argument("--block", type=int, default=100, help="requests of a block")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--zipf", type=float, default=1.0, help="0 is even")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = {name: Outcome() for name in ROUTERS}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            url = start(Path(scratch), options)
            for names in draw(options):
                for router, outcome in outcomes.items():
                    asking = ask_all(f"{url}/{router}", names, outcome, clients=options.clients)
                    asyncio.run(asking)
        finally:
            serve.shutdown()
            ray.shutdown()
    record = {"options": vars(options), **{n: outcome.record() for n, outcome in outcomes.items()}}
    print(json.dumps(record, indent=2))
    print(save("ray-affinity", record))


if __name__ == "__main__":
    main()
