"""Scores are those of the model, whatever the settings, the neighbours and the path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.config import CacheConfig, SchedulerConfig
from multiflora.engine.messages import Submit
from multiflora.engine.request import TokenScore

PROMPT = list(range(20, 75))


@torch.no_grad()
def reference(folder: Path, tokens: list[int]) -> torch.Tensor:
    """float64 logarithms of the next token's probability after each of ``tokens``, [T, V]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval()(torch.tensor([tokens])).logits[0].double().log_softmax(1)


def assert_close(found: list[TokenScore], wanted: torch.Tensor, tokens: list[int]) -> None:
    assert len(found) == len(tokens)
    for score, row, token in zip(found, wanted, tokens, strict=True):
        assert score.logprob == pytest.approx(float(row[token]), abs=1e-5)
        best = row.topk(len(score.top))
        assert list(score.top) == best.indices.tolist()
        assert list(score.top_logprobs) == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("budget", [64, 512], ids=["chunked", "whole"])
def test_scores_equal_transformers(
    budget: int, make_bench: Callable[..., Any], model_folder: Callable[[str], Path]
) -> None:
    scheduler = SchedulerConfig(max_batched_tokens=budget, max_num_requests=budget // 2)
    bench = make_bench(quantization="none", scheduler=scheduler)
    request = bench.request(None, PROMPT, id="r", max_tokens=5, logprobs=3, prompt_logprobs=2)
    bench.run([request, bench.request("rank-3", PROMPT, id="other", max_tokens=9)])
    answer = bench.answers["r"]
    wanted = reference(model_folder("llama"), PROMPT + answer)
    assert_close(bench.prompt_scores["r"], wanted[: len(PROMPT) - 1], PROMPT[1:])
    assert_close(bench.scores["r"], wanted[len(PROMPT) - 1 : -1], answer)


def test_settings_change_the_draw_and_not_the_score(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    settings = {"temperature": 0.3, "top_k": 1, "logit_bias": ((7, 100.0),), "logprobs": 1}
    bench.run(
        [
            bench.request(None, PROMPT, id="plain", max_tokens=1, logprobs=1),
            bench.request(None, PROMPT, id="biased", max_tokens=1, **settings),
        ]
    )
    assert bench.answers["biased"] == [7]
    (plain,), (biased,) = bench.scores["plain"], bench.scores["biased"]
    assert (plain.top, plain.top_logprobs) == (biased.top, biased.top_logprobs)
    assert biased.logprob < plain.logprob == plain.top_logprobs[0]


def test_who_asks_for_nothing_gets_nothing(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    asks = bench.request(None, PROMPT, id="asks", logprobs=0, prompt_logprobs=0)
    bench.run([asks, bench.request(None, PROMPT, id="does-not")])
    assert bench.scores["does-not"] == bench.prompt_scores["does-not"] == []
    assert {score.top for score in bench.scores["asks"]} == {()}


@pytest.mark.parametrize("adapter", [None, "rank-3"])
def test_neighbours_caches_and_preemptions_change_no_bit(
    adapter: str | None, make_bench: Callable[..., Any]
) -> None:
    settings = {"max_tokens": 30, "logprobs": 2, "prompt_logprobs": 2}
    alone = make_bench()
    alone.run([alone.request(adapter, PROMPT, id="r", **settings)])
    tight = make_bench(
        scheduler=SchedulerConfig(max_num_requests=8, max_batched_tokens=24),
        cache=CacheConfig(memory_bytes=20 * 2 * 3 * 2 * 32 * 4 * 8, block_size=8),
        max_model_len=120,
    )
    # The first leaves its prefix in the cache; the others press for blocks.
    tight.run([tight.request(adapter, PROMPT, id="first", max_tokens=1)])
    crowd = [tight.request(None, PROMPT[k:], id=f"n{k}", max_tokens=40) for k in range(1, 4)]
    tight.send(*(Submit(request) for request in crowd))
    tight.run([tight.request(adapter, PROMPT, id="r", **settings)])
    assert tight.scores["r"] == alone.scores["r"]
    assert tight.prompt_scores["r"] == alone.prompt_scores["r"]


def test_a_prompt_is_scored_without_an_answer(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bench.run(
        [
            bench.request(None, PROMPT, id="r", max_tokens=0, prompt_logprobs=1),
            bench.request(None, PROMPT[:1], id="one", max_tokens=0, prompt_logprobs=1),
        ]
    )
    assert bench.answers["r"] == bench.answers["one"] == bench.prompt_scores["one"] == []
    assert len(bench.prompt_scores["r"]) == len(PROMPT) - 1
    assert bench.reasons == {"r": "length", "one": "length"}
