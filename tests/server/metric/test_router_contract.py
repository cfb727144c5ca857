"""A router's reading of a server over HTTP: without a key, an Accept header, or patience."""

import re

import httpx
import pytest

from multiflora.engine.request import EngineStats

from ..conftest import DIGESTS
from .replica import read

pytestmark = pytest.mark.anyio
_LABEL = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\n"])*"'
# Of the classic format: no timestamps, no exemplars, no quoted names.
_SAMPLE = re.compile(rf"([a-zA-Z_:][\w:]*)(?:\{{((?:{_LABEL},)*{_LABEL})?\}})? (\S+)")
# What llm-d's picker asks of a server that calls itself a vLLM.
GAUGES = (
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
)


async def scrape(url: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=10) as router:
        del router.headers["accept"]
        return await router.get("/metrics")


def samples(page: str) -> list[tuple[str, str, float]]:
    """Names, labels and values; fails at the first line that the classic format has not."""
    found = []
    for line in page.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            found.append((match[1], match[2] or "", float(match[3])))
    return found


async def test_it_gets_the_classic_format_whatever_it_accepts(url):
    answer = await scrape(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert len(samples(answer.text)) > 50
    assert answer.text.endswith("\n")


async def test_every_signal_is_one_gauge_with_one_series(url):
    page = (await scrape(url)).text
    names = [name for name, _, _ in samples(page)]
    for name in GAUGES:
        assert f"# TYPE {name} gauge\n" in page
        assert names.count(name) == 1, name
    ((_, own, value),) = [one for one in samples(page) if one[0] == "vllm:lora_requests_info"]
    assert re.fullmatch(
        r'max_lora="[0-9]+",running_lora_adapters="[^"]*",waiting_lora_adapters="[^"]*"', own
    )
    assert value > 1_600_000_000
    ((_, geometry, one),) = [one for one in samples(page) if one[0] == "vllm:cache_config_info"]
    assert re.search(r'block_size="[0-9]+",num_gpu_blocks="[0-9]+"', geometry)
    assert one == 1


async def test_it_knows_after_a_request_where_the_adapter_is(url, engine, monkeypatch):
    async def with_a_resident() -> EngineStats:
        return EngineStats(version_bytes={DIGESTS["json"]: 1 << 20}, adapter_bytes_total=1 << 22)

    monkeypatch.setattr(engine, "stats", with_a_resident)
    assert read((await scrape(url)).text).running_adapters == frozenset()
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/completions", json={"model": "json", "prompt": "hi"})
        assert answer.status_code == 200
    assert read((await scrape(url)).text).score("json") == 1.0
