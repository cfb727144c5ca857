"""Replicas of the engine under Ray Serve, each request where its adapter is.

python -m deploy.ray_serve --store file:///shared/adapters --replicas 2 -- Qwen/Qwen2.5-7B-Instruct
starts them on this machine; serve run deploy.ray_serve:build store=... replicas=2 in a cluster.
Adapters are published with deploy/replicas/publish.py. docs/deployment.md has the rest.
"""

import argparse
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Nothing is sent anywhere unless somebody asks for it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from deploy.replicas.door import Door
from deploy.replicas.replica import Replica, ReplicaSettings

# Longer than --drain-timeout of the replicas' servers.
_STOP_SECONDS: Final = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``requests_per_replica`` bounds what a replica works on at a time.

    ``router`` is Ray Serve's; with ``prefers_residents`` it is told which adapter is asked for.
    """

    replica: ReplicaSettings
    num_replicas: int = 2
    num_gpus: float = 0
    num_cpus: float = 1
    requests_per_replica: int = 64
    prefers_residents: bool = True
    router: RequestRouterConfig = field(default_factory=RequestRouterConfig)


def application(settings: Settings) -> Application:
    """The door and its replicas, for ``serve.run``."""
    replicas = serve.deployment(
        name="replica",
        num_replicas=settings.num_replicas,
        max_ongoing_requests=settings.requests_per_replica,
        max_queued_requests=16 * settings.requests_per_replica * settings.num_replicas,
        request_router_config=settings.router,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=_STOP_SECONDS,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )(Replica)
    door = serve.deployment(
        name="door", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )(Door)
    return door.bind(
        replicas.bind(settings.replica),
        store=settings.replica.store,
        prefers_residents=settings.prefers_residents,
    )


def build(arguments: dict[str, Any]) -> Application:
    """For ``serve run deploy.ray_serve:build store=URL data=FOLDER flags="--model ..."``."""
    return application(_settings(arguments))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray_serve")
    parser.add_argument("--store", required=True, help="file:///folder or s3://bucket/prefix")
    parser.add_argument("--data", default="replicas", help="where replicas keep their data")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each replica")
    parser.add_argument("--adapters", type=int, default=8, help="most that a replica keeps ready")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("flags", nargs="*", help="of multiflora serve, after --")
    options = vars(parser.parse_args())
    http = {"host": options.pop("host"), "port": options.pop("port")}
    ray.init(include_dashboard=False)
    serve.start(http_options=http)
    serve.run(application(_settings(options)), blocking=True)


def _settings(arguments: dict[str, Any]) -> Settings:
    flags = arguments.get("flags", ())
    return Settings(
        replica=ReplicaSettings(
            store=arguments["store"],
            data_root=Path(arguments.get("data", "replicas")).resolve(),
            flags=tuple(shlex.split(flags) if isinstance(flags, str) else flags),
            adapters_per_replica=int(arguments.get("adapters", 8)),
        ),
        num_replicas=int(arguments.get("replicas", 2)),
        num_gpus=float(arguments.get("gpus", 0)),
    )


if __name__ == "__main__":
    main()
