"""The compose files are such, and what they mount is there."""

import subprocess
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
COMPOSE = DEPLOY / "compose.yaml"


def test_the_files_fit_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = sorted(DEPLOY.rglob("compose*.yaml"))
    assert len(files) == 3
    done = subprocess.run([*checker, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_they_mount_is_there_and_nothing_is_published_beyond_this_machine() -> None:
    for path in (COMPOSE, DEPLOY / "llm-d" / "compose.yaml"):
        compose = yaml.safe_load(path.read_text())
        for service in compose["services"].values():
            for mount in service["volumes"]:
                source = mount.partition(":")[0]
                where = path.parent / source if source.startswith(".") else None
                assert source in compose["volumes"] or (where and where.exists()), source
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_prometheus_reads_the_port_that_the_server_listens_on() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target
        for job in settings["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    (port,) = (port.rpartition(":")[2] for port in compose["services"]["server"]["ports"])
    assert targets == {f"server:{port}"}
