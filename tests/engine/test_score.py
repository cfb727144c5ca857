"""Scores are those of the model, whatever the settings, the neighbours and the path."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.config import CacheConfig, SchedulerConfig
from multiflora.engine.messages import Submit
from multiflora.engine.request import TokenScore
from multiflora.engine.score import ScoreOrder, score

PROMPT = list(range(20, 75))


@torch.no_grad()
def reference(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Logarithms of the next token's probability after each of ``tokens``, float64 [T, V]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()(torch.tensor([tokens])).logits[0].double().log_softmax(1)


def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float64 models compute all in float64: transformers takes float32 in three places."""
    from transformers.models.llama import modeling_llama as llama

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def softmax(x: torch.Tensor, *, dim: int, dtype: torch.dtype) -> torch.Tensor:
        return x.softmax(dim)

    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(llama.LlamaRotaryEmbedding, "forward", rotary)
    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


def assert_close(found: list[TokenScore], wanted: torch.Tensor, tokens: list[int]) -> None:
    assert len(found) == len(tokens)
    for one, row, token in zip(found, wanted, tokens, strict=True):
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-5)
        best = row.topk(len(one.top))
        assert list(one.top) == best.indices.tolist()
        assert list(one.top_logprobs) == pytest.approx(best.values.tolist(), abs=1e-5)


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


def test_a_score_adds_no_error_to_its_logits() -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(7)) * 30
    orders = [ScoreOrder(row, token, 2) for row, token in ((2, 17), (0, 4999), (2, 0))]
    for order, found in zip(orders, score(logits, orders), strict=True):
        row = logits[order.row].tolist()
        top = max(row)
        total = top + math.log(math.fsum(math.exp(value - top) for value in row))
        wanted = [row[order.token], *sorted(row, reverse=True)[:2]]
        for one, value in zip((found.logprob, *found.top_logprobs), wanted, strict=True):
            assert one == pytest.approx(value - total, abs=1e-12)


def test_what_a_score_lacks_is_float32_in_the_layers_and_no_more_than_transformers_lacks(
    make_bench: Callable[..., Any],
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = make_bench(quantization="none")
    bench.run([bench.request(None, PROMPT, id="r", max_tokens=0, prompt_logprobs=0)])
    folder = model_folder("llama")
    theirs = reference(folder, PROMPT, torch.float32)
    exact_arithmetic(monkeypatch)
    exact = reference(folder, PROMPT)
    rows, tokens = torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])
    found = torch.tensor([one.logprob for one in bench.prompt_scores["r"]], dtype=torch.float64)
    error = (found - exact[rows, tokens]).abs()
    error_of_theirs = (theirs - exact)[rows, tokens].abs()
    assert float(error.mean()) <= 1.5 * float(error_of_theirs.mean())
    assert float(error_of_theirs.max()) > 1e-6, "transformers itself is not that exact"


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
    assert {one.top for one in bench.scores["asks"]} == {()}


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
