"""A merge over HTTP on a real server: it answers as the blend that it replaces."""

from typing import Any

import httpx

WEIGHTS = {"rank-3": 0.75, "rank-8-rslora": -0.5}
PROMPTS = ("the quick brown", "lazy dog over", "fox")


def complete(url: str, prompt: str, **fields: Any) -> str:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_a_merged_adapter_answers_as_the_blend(tiny_server: Any) -> None:
    url = tiny_server.url
    sources = [{"adapter": name, "weight": weight} for name, weight in WEIGHTS.items()]
    body = {"name": "merged", "sources": sources, "dtype": "float32"}
    answer = httpx.post(f"{url}/v1/adapters/merge", json=body, timeout=120)
    assert answer.status_code == 201, answer.text
    try:
        blend = [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]
        said = [complete(url, prompt, model="merged") for prompt in PROMPTS]
        assert said == [complete(url, prompt, model="base", adapters=blend) for prompt in PROMPTS]
        assert said != [complete(url, prompt, model="base") for prompt in PROMPTS]
    finally:
        assert httpx.delete(f"{url}/v1/adapters/merged").status_code == 200
