"""DoRA, biases, (IA)^3, heads and embeddings: mixed batches against PEFT, adapter by adapter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.request import AdapterShare
from multiflora.engine.scheduler import ScheduledRequest, StepPlan
from multiflora.kernels import nf4
from multiflora.kernels.quantize import quantize

from .peft_extras import BASES, Extras, load

PROMPTS = [list(range(5, 22)), list(range(40, 49))]


def reference(model: Path, folder: Path | None, quantization: str) -> Any:
    """What PEFT computes with a base of its own: loading some adapters changes the base."""
    loaded = load(model)
    if quantization == "nf4":
        for name, module in loaded.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = nf4.dequantize(quantize(module.weight.data))
    return loaded if folder is None else PeftModel.from_pretrained(loaded, folder).eval()


def prefill(bench: Any, requests: list[Any]) -> StepPlan:
    pool, items, fresh = bench.loop._pool, [], []
    for number, request in enumerate(requests):
        active = ActiveRequest(request, number)
        active.blocks = pool.allocate(-(-len(request.prompt) // pool.block_size))
        fresh += active.blocks
        items.append(ScheduledRequest(active, 0, len(request.prompt), samples=True))
    return StepPlan(tuple(items), tuple(fresh))


# PEFT warns of what it takes for damage or a surprise: biases of lora_B, copies of the base, ties.
pytestmark = [
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@torch.no_grad()
def test_logits_of_a_mixed_batch_equal_peft(
    kernels: str,
    quantization: str,
    base: str,
    extras: Callable[[str], Extras],
    make_bench: Callable[..., Any],
) -> None:
    model, adapters = extras(base)
    bench = make_bench(quantization=quantization, kernels=kernels, model=model, adapters=adapters)
    requests = [
        bench.request(name, prompt, max_tokens=3)
        for name in (*adapters, None)
        for prompt in PROMPTS
    ]
    bench.run(requests)
    logits = bench.loop._runner.logits(prefill(bench, requests))
    ids = [torch.tensor([prompt]) for prompt in PROMPTS]
    plain = reference(model, None, quantization)
    unadapted = [plain(prompt).logits[0, -1] for prompt in ids]
    rows = iter(logits)
    for name in (*adapters, None):
        peft_model = reference(model, adapters[name] if name else None, quantization)
        for prompt, without in zip(ids, unadapted, strict=True):
            expected = peft_model(prompt).logits[0, -1]
            error = float((next(rows) - expected).abs().max())
            assert error <= 1e-4, (name, error)
            assert (float((expected - without).abs().max()) > 0.1) == (name is not None), name


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@torch.no_grad()
def test_blends_add_shares_of_biases_heads_and_embeddings(
    kernels: str, extras: Callable[[str], Extras], make_bench: Callable[..., Any]
) -> None:
    model, adapters = extras("biased")
    weights = {"bias-all": 0.75, "lora-bias": -0.5, "head-embedding": 0.5}
    chosen = {name: adapters[name] for name in weights}
    bench = make_bench(quantization="none", kernels=kernels, model=model, adapters=chosen)
    blend = replace(
        bench.request(None, PROMPTS[0], id="blend"),
        adapters=tuple(AdapterShare(bench.digests[name], w) for name, w in weights.items()),
    )
    requests = [blend, bench.request("bias-all", PROMPTS[1])]
    bench.run(requests)
    merged = load(model)
    base = {name: parameter.clone() for name, parameter in merged.named_parameters()}
    for name, weight in weights.items():
        adapted = PeftModel.from_pretrained(load(model), adapters[name])
        for path, parameter in adapted.merge_and_unload().named_parameters():
            merged.get_parameter(path).data += weight * (parameter - base[path])
    row = bench.loop._runner.logits(prefill(bench, requests))[0]
    expected = merged(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert float((row - expected).abs().max()) <= 1e-4


def test_the_engine_refuses_a_blend_that_the_server_let_through(
    extras: Callable[[str], Extras], make_bench: Callable[..., Any]
) -> None:
    model, adapters = extras("tied")
    chosen = {name: adapters[name] for name in ("plain", "dora-some")}
    bench = make_bench(model=model, adapters=chosen)
    plain, dora = bench.digests.values()
    blends = {
        "pair": (AdapterShare(plain, 0.5), AdapterShare(dora)),
        "half": (AdapterShare(dora, 0.5),),
        "alone": (AdapterShare(dora),),
    }
    bench.run(
        replace(bench.request(None, PROMPTS[0], id=name), adapters=shares)
        for name, shares in blends.items()
    )
    assert set(bench.errors) == {"pair", "half"}
    assert all("cannot be blended" in (event.error or "") for event in bench.errors.values())
    assert len(bench.answers["alone"]) == 8


@torch.no_grad()
def test_bfloat16_is_as_close_as_plain_lora(
    extras: Callable[[str], Extras], make_bench: Callable[..., Any]
) -> None:
    model, adapters = extras("biased")
    bench = make_bench(quantization="none", dtype="bfloat16", model=model, adapters=adapters)
    requests = [bench.request(name, PROMPTS[0], max_tokens=1) for name in adapters]
    bench.run(requests)
    rows = bench.loop._runner.logits(prefill(bench, requests))
    errors = {}
    for row, name in zip(rows, adapters, strict=True):
        expected = reference(model, adapters[name], "none")(torch.tensor([PROMPTS[0]])).logits[
            0, -1
        ]
        errors[name] = float((row - expected).norm() / expected.norm())
    assert max(errors.values()) <= 2 * errors["plain"], errors
