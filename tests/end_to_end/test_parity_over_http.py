"""What a client reads over HTTP is what transformers and PEFT say, adapter by adapter."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.request import GenerationRequest, SamplingParams

from ..clients.reference import served_base

PROMPTS = [list(range(20, 57)), list(range(100, 111))]
COUNT = 14


@pytest.fixture(scope="module")
def expected(
    model_folder: Callable[..., Path], adapter_folders: Callable[[str], dict[str, Path]]
) -> dict[tuple[str, int], str]:
    """Greedy text by (model name, prompt index), cut before the first near-tie."""
    from peft import PeftModel

    folder, adapters = model_folder("llama"), adapter_folders("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = served_base(folder)
    texts = {("base", i): _greedy(model, prompt, tokenizer) for i, prompt in enumerate(PROMPTS)}
    peft_model: Any = None
    for index, (name, path) in enumerate(adapters.items()):
        if peft_model is None:
            peft_model = PeftModel.from_pretrained(model, str(path), adapter_name=str(index)).eval()
        else:
            peft_model.load_adapter(str(path), adapter_name=str(index))
        peft_model.set_adapter(str(index))
        for number, prompt in enumerate(PROMPTS):
            texts[name, number] = _greedy(peft_model, prompt, tokenizer)
    return texts


@torch.no_grad()
def _greedy(model: Any, prompt: list[int], tokenizer: Any) -> str:
    tokens = list(prompt)
    for _ in range(COUNT):
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < 1e-3:
            break
        tokens.append(int(best.indices[0]))
    return tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)


def _complete(server: Any, model: str, prompt: list[int], stream: bool) -> str:
    answer = server.client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=COUNT,
        temperature=0,
        stream=stream,
        extra_body={"ignore_eos": True},
    )
    if stream:
        return "".join(chunk.choices[0].text for chunk in answer)
    return answer.choices[0].text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_mixed_batch_over_http_equals_peft(
    stream: bool, tiny_server: Any, expected: dict[tuple[str, int], str]
) -> None:
    steps, tokens = _counters(tiny_server)
    with ThreadPoolExecutor(len(expected)) as pool:
        answers = {
            (name, number): pool.submit(_complete, tiny_server, name, PROMPTS[number], stream)
            for name, number in expected
        }
    for key, text in expected.items():
        # The last character of a cut text may be half of one.
        wanted = text.rstrip("\ufffd")
        assert answers[key].result().startswith(wanted), key
        assert wanted, key
    assert len(set(expected.values())) > len(expected) // 2, "adapters must differ"
    steps_after, tokens_after = _counters(tiny_server)
    assert tokens_after - tokens > 2 * (steps_after - steps), "the batch was hardly mixed"


def _counters(server: Any) -> tuple[float, float]:
    names = ("multiflora_engine_steps_total", "multiflora_generated_tokens_total")
    steps, tokens = (server.metric(name) for name in names)
    return steps, tokens


def test_a_list_of_prompts_is_answered_in_order(tiny_server: Any) -> None:
    single = [_complete(tiny_server, "rank-3", prompt, False) for prompt in PROMPTS]
    answer = tiny_server.client.completions.create(
        model="rank-3",
        prompt=PROMPTS,
        max_tokens=COUNT,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert [choice.text for choice in answer.choices] == single
    assert [choice.index for choice in answer.choices] == [0, 1]


async def _score_in_process(folder: Path, data_dir: Path, prompt: list[int]) -> list[float]:
    config = EngineConfig(
        base=BaseConfig(model=str(folder), dtype="float32"),
        device="cpu",
        data_dir=str(data_dir),
        cache=CacheConfig(memory_bytes=8 << 20),
    )
    client = EngineClient.in_this_process(config)
    await client.start()
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    request = GenerationRequest(id="r", prompt=tuple(prompt), sampling=sampling)
    events = [event async for event in client.generate(request)]
    await client.stop()
    return [score.logprob for event in events for score in event.prompt_scores]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scores_over_http_are_those_of_an_engine_in_process(
    max_tokens: int, tiny_server: Any, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (answer,) = tiny_server.client.completions.create(
        model="base", prompt=PROMPTS[0], echo=True, logprobs=1, max_tokens=max_tokens
    ).choices
    wanted = asyncio.run(_score_in_process(model_folder("llama"), tmp_path, PROMPTS[0]))
    first, *scores = answer.logprobs.token_logprobs
    assert first is None
    assert len(scores) == len(wanted) + max_tokens
    assert scores[: len(wanted)] == pytest.approx(wanted, abs=1e-6)
