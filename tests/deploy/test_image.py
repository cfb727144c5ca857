"""The image: what its linter says, what it takes from the repository, and how it runs.

No engine builds it here. What the build would run is run in a scratch folder instead.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from multiflora.adapters.registry import DATABASE_NAME
from multiflora.server.routes import health
from multiflora.server.settings import ServeSettings

from .dockerfile import ROOT, Stage, read_stages

STAGES = read_stages()
BUILD, SERVER = STAGES["build"], STAGES["server"]


def compose(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())["services"]["server"]


def probe() -> list[str]:
    """The command of the HEALTHCHECK."""
    (check,) = SERVER.all("HEALTHCHECK")
    return json.loads(check.rest.partition("CMD ")[2])


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_copies_is_tracked_and_reaches_the_build() -> None:
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for source, _ in BUILD.copied() + SERVER.copied():
        listed = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True)
        assert listed.stdout, f"{source} is not in the repository"
        assert any(source == name or source.startswith(f"{name}/") for name in sent), source
    assert all((ROOT / name).exists() for name in sent)


def test_the_server_is_no_root_and_no_compiler_is_beside_it() -> None:
    (user,) = SERVER.all("USER")
    assert user.rest == "10001:10001"
    assert [volume.rest for volume in SERVER.all("VOLUME")] == ["/data"]
    installed = " ".join(step.rest for step in SERVER.all("RUN"))
    assert not {"g++", "gcc", "python3-dev", "build-essential"} & set(installed.split())
    assert "g++" in " ".join(step.rest for step in BUILD.all("RUN"))


def test_everything_it_writes_is_in_the_volume_or_in_tmp() -> None:
    places = SERVER.environment()
    for name in ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR", "MULTIFLORA_DATA_DIR"):
        assert places[name].split("/")[1] in ("data", "tmp"), name


def test_its_settings_and_its_probe_are_the_servers() -> None:
    known = {f"MULTIFLORA_{field.upper()}" for field in ServeSettings.__dataclass_fields__}
    named = {name for name in SERVER.environment() if name.startswith("MULTIFLORA_")}
    assert named <= known
    assert [port.rest for port in SERVER.all("EXPOSE")] == [str(ServeSettings().port)]
    program = probe()[-1]
    assert any(f"'{route.path}'" in program for route in health.router.routes)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "variant"), [("compose.yaml", "cpu"), ("compose.gpu.yaml", "cuda")]
)
def test_compose_builds_a_variant_that_there_is(name: str, variant: str) -> None:
    service = compose(name)
    assert service["build"]["args"] == {"VARIANT": variant}
    assert service["image"] == f"multiflora:{variant}"
    assert f"runtime-{variant}" in STAGES


def test_compose_gives_the_drain_its_time_and_the_image_its_data() -> None:
    service = compose("compose.yaml")
    assert float(service["stop_grace_period"].removesuffix("s")) > ServeSettings().drain_timeout
    assert service["read_only"]
    assert service["volumes"] == ["data:/data"]
    assert "/tmp" in service["tmpfs"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler (cc) is missing")
def test_triton_needs_no_compiler_once_its_launcher_was_built(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "deploy" / "image" / "launcher.py"]
    settings = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run(command, env=settings, check=True, capture_output=True)
    (built,) = tmp_path.rglob("*.so")
    # It asks for the driver by itself: nothing else has loaded it where a server starts.
    assert b"libcuda.so.1\0" in built.read_bytes()
    subprocess.run(command, env={**settings, "CC": "false"}, check=True, capture_output=True)


class Scratch:
    """The image's folders somewhere else, and the steps of its CPU variant run on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("opt", "src", "data", "tmp"):
            (root / folder).mkdir()

    def at(self, text: str) -> str:
        """``text`` with the image's paths below the scratch folder."""
        return re.sub(r"(?<![\w.])/(?=(opt|src|data|tmp)\b)", f"{self.root}/", text)

    def copy(self, stage: Stage) -> None:
        for source, place in stage.copied():
            to = Path(self.at(place)) if place.startswith("/") else self.root / "src" / place
            to = to / Path(source).name if place == "./" else to
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / source, to, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / source, to)

    def run(self, step: str) -> None:
        step = self.at(step).replace("python3 -m venv", f"{sys.executable} -m venv")
        kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "HOME"}
        path = f"{self.root}/opt/multiflora/bin:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-e", "-c", step],
            cwd=self.root / "src",
            env={**kept, "PATH": path, "VARIANT": "cpu", "EXTRAS": "otel"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """The build's steps but apt-get's, done."""
    scratch = Scratch(tmp_path_factory.mktemp("image"))
    scratch.copy(BUILD)
    scratch.copy(SERVER)
    steps = [step.rest for step in BUILD.all("RUN") if "apt-get" not in step.rest]
    assert len(steps) == 5
    for step in steps:
        scratch.run(step)
    return scratch


@pytest.fixture
def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.full
@pytest.mark.timeout(900)
def test_its_steps_make_a_server_that_answers_its_probe_and_drains(
    scratch: Scratch, port: str
) -> None:
    assert list((scratch.root / "opt").rglob("cpu_ops/core-*.so")), "the core was not compiled"
    settings = {name: scratch.at(value) for name, value in SERVER.environment().items()}
    settings |= {"MULTIFLORA_INSECURE": "true", "MULTIFLORA_PORT": port}
    settings["PATH"] = f"{scratch.root}/opt/multiflora/bin:/usr/bin:/bin"
    # As in the entry point: the one path that the image has and this machine has not.
    entry = scratch.at((scratch.root / "opt" / "entrypoint.sh").read_text())
    server = subprocess.Popen(["sh", "-c", entry, "entrypoint", "serve"], env=settings, cwd="/")
    try:
        wait_until(lambda: is_healthy(settings), server)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/ready").is_success, server)
        body = {"model": "json", "prompt": "Is 4821 even or odd?", "max_tokens": 4}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert not is_healthy(settings)
    kept = {path.name for path in (scratch.root / "data").iterdir()}
    assert {DATABASE_NAME, "triton"} <= kept


def wait_until(is_so: Callable[[], bool], server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)


def is_healthy(settings: dict[str, str]) -> bool:
    return subprocess.run(probe(), env=settings, capture_output=True).returncode == 0
