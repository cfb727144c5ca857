"""The pages, read by Prometheus itself and by its linter."""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from multiflora.adapters.tier import Tier
from multiflora.server.listener import bind

from ..conftest import DIGESTS

pytestmark = pytest.mark.anyio
PAGES = ("/metrics", "/metrics/adapters")


@pytest.fixture
async def asked(url, engine):
    """The server, after a request to an adapter that came from the disk."""
    engine.tiers[DIGESTS["json"]] = Tier.DEVICE
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/completions", json={"model": "json", "prompt": "hi"})
        assert answer.status_code == 200
        yield client


@pytest.fixture
async def prometheus(component: Callable[[str], Path], url, tmp_path):
    """A Prometheus that reads both pages every 100 ms; yields its URL."""
    jobs = "".join(
        f"- job_name: {path[1:].replace('/', '-')}\n"
        f"  metrics_path: {path}\n"
        f"  static_configs: [{{targets: ['{url.removeprefix('http://')}']}}]\n"
        for path in PAGES
    )
    settings = tmp_path / "prometheus.yml"
    settings.write_text(f"global: {{scrape_interval: 100ms}}\nscrape_configs:\n{jobs}")
    with bind("127.0.0.1", 0) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        component("prometheus"),
        f"--config.file={settings}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    yield f"http://{address}"
    process.terminate()
    await process.wait()


async def test_prometheus_reads_both_pages(asked, prometheus):
    tier = 'multiflora_adapter_tier{adapter="json",tier="device"}'
    wanted = {'up{job="metrics"}': "1", tier: "1", "multiflora_engine_steps_total": "7"}
    found: dict[str, str] = {}
    async with httpx.AsyncClient(base_url=prometheus) as client:
        for _ in range(200):
            for expr in wanted:
                try:
                    answer = await client.get("/api/v1/query", params={"query": expr})
                    result = answer.json()["data"]["result"]
                except (httpx.TransportError, KeyError, ValueError):
                    # It has only just started.
                    continue
                found |= {expr: result[0]["value"][1]} if result else {}
            if found == wanted:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"found {found}")


async def test_the_linter_finds_nothing_and_no_family_is_on_both_pages(asked, component):
    promtool = component("promtool")
    families = []
    for path in PAGES:
        text = (await asked.get(path)).text
        families.append(set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)))
        # The linter frowns at colons, which routers insist on.
        own = "\n".join(line for line in text.splitlines() if "vllm:" not in line)
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=f"{own}\n", capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not families[0] & families[1]
