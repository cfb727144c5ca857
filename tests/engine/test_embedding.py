"""Embeddings are the last hidden state, alone, in batches, in chunks and behind caches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from multiflora.engine.config import SchedulerConfig
from multiflora.engine.messages import Events

PROMPT = list(range(20, 75))


def embed(bench: Any, *requests: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    report = bench.loop._report

    def watch(message: Any) -> None:
        for event in message.events if isinstance(message, Events) else ():
            if event.embedding:
                found[event.request_id] = numpy.frombuffer(event.embedding, "<f4")
        report(message)

    bench.loop._report = watch
    bench.run(requests)
    return found


def wanting(request: Any) -> Any:
    return replace(request, wants_embedding=True)


@torch.no_grad()
def test_it_is_the_last_hidden_state_of_transformers(
    make_bench: Callable[..., Any], model_folder: Callable[[str], Path]
) -> None:
    import transformers

    bench = make_bench(quantization="none", scheduler=SchedulerConfig(max_batched_tokens=64))
    found = embed(
        bench,
        wanting(bench.request(None, PROMPT, id="long", max_tokens=0)),
        wanting(bench.request(None, PROMPT[:3], id="short", max_tokens=0)),
        bench.request(None, PROMPT, id="other", max_tokens=4),
    )
    model = transformers.AutoModel.from_pretrained(model_folder("llama"), dtype=torch.float32)
    for name, prompt in (("long", PROMPT), ("short", PROMPT[:3])):
        wanted = model.eval()(torch.tensor([prompt])).last_hidden_state[0, -1]
        assert found[name] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert set(found) == {"long", "short"}
    assert len(bench.answers["other"]) == 4


@pytest.mark.parametrize("adapter", [None, "rank-3"])
def test_chunks_caches_and_neighbours_change_no_bit(
    adapter: str | None, make_bench: Callable[..., Any]
) -> None:
    alone = make_bench()
    wanted = embed(alone, wanting(alone.request(adapter, PROMPT, id="r", max_tokens=0)))
    tight = make_bench(scheduler=SchedulerConfig(max_num_requests=4, max_batched_tokens=16))
    embed(tight, tight.request(adapter, PROMPT, id="first", max_tokens=2))
    found = embed(
        tight,
        wanting(tight.request(adapter, PROMPT, id="r", max_tokens=0)),
        tight.request("rank-1", PROMPT[5:], id="other"),
    )
    assert found["r"].tobytes() == wanted["r"].tobytes()
