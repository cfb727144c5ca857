"""Gradients and losses of the manual layer loop against autograd through PEFT."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multiflora.engine.config import BaseConfig
from multiflora.engine.training.sweep import Noise, Sweep
from multiflora.kernels import nf4
from multiflora.kernels.quantize import quantize

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS = [40, 7, 3, 25]
EVERY_LINEAR = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": "all-linear",
    "rank_pattern": {"down_proj": 3, r"layers\.0\.self_attn\.q_proj": 2},
}
SUBSET = {
    "r": 5,
    "lora_alpha": 5,
    "use_rslora": True,
    "target_modules": ["k_proj", "up_proj", "o_proj"],
    "layers_to_transform": [1, 2],
}
DORA = {**EVERY_LINEAR, "use_dora": True}
SUBSET_DORA = {**SUBSET, "use_dora": True}


def weighted_sum(weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda log_probs: -(weights * log_probs).sum() / weights.sum()


def peft_gradients(model: Any, settings: dict[str, Any], factors: Any, examples: Any) -> Any:
    """Loss and gradients, by PEFT's name, of the examples one at a time."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    peft_model: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    loaded = set_peft_model_state_dict(peft_model, factors.tensors())
    assert not loaded.unexpected_keys
    total = sum(sum(example.weights) for example in examples)
    loss = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.ids])
        log_probs = peft_model(ids).logits[0, :-1].log_softmax(-1)
        picked = log_probs.gather(1, ids[0, 1:, None])[:, 0]
        loss = loss - (torch.tensor(example.weights[1:]) * picked).sum() / total
    loss.backward()
    gradients = {
        name.replace(".default", "").replace("vector.weight", "vector"): parameter.grad
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    return float(loss.detach()), gradients


@pytest.mark.parametrize(
    "settings",
    [EVERY_LINEAR, SUBSET, DORA, SUBSET_DORA],
    ids=["every-linear", "subset", "dora", "subset-dora"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_autograd_through_peft(
    family: str,
    settings: dict[str, Any],
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    reference_model: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, examples = make_network(family), make_examples(LENGTHS, first=2)
    factors = make_factors(network, **settings)
    batch = pack(examples)
    loss = weighted_sum(batch.weights)
    scores = drain(Sweep(network, batch, factors).train(loss))
    expected_loss, expected = peft_gradients(reference_model(family), settings, factors, examples)
    assert float(loss(scores.log_probs)) == pytest.approx(expected_loss, rel=1e-5)
    ours = factors.gradients()
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_kernels_and_quantization_give_the_same_kind_of_gradient(
    kernels: str,
    quantization: str,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    reference_model: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    # More rows than the fused matmul takes.
    examples = make_examples([200, 150], first=2)
    network = make_network("llama", kernels=kernels, quantization=quantization)
    factors = make_factors(network, **EVERY_LINEAR)
    batch = pack(examples)
    drain(Sweep(network, batch, factors).train(weighted_sum(batch.weights)))
    model = reference_model("llama", quantized=quantization == "nf4")
    _, expected = peft_gradients(model, EVERY_LINEAR, factors, examples)
    ours = factors.gradients()
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_score_as_if_alone(
    family: str,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, examples = make_network(family), make_examples([60, 9, 33], first=1)
    factors = make_factors(network, **EVERY_LINEAR)
    together = drain(Sweep(network, pack(examples), factors).score()).log_probs
    alone = [drain(Sweep(network, pack([e]), factors).score()).log_probs for e in examples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_sequence_never_sees_its_neighbours(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network = make_network("mistral")
    factors = make_factors(network, **EVERY_LINEAR)
    first, second, third = make_examples([31, 40, 17], first=1)
    (other,) = make_examples([31], first=1, seed=99)
    kept = slice(30, 30 + 39 + 16)
    scores = [
        drain(Sweep(network, pack([head, second, third]), factors).score()).log_probs
        for head in (first, other)
    ]
    assert not torch.equal(scores[0][:30], scores[1][:30])
    assert torch.equal(scores[0][kept], scores[1][kept])


def test_noise_is_the_same_on_both_ways_and_scaled_by_each_length(
    make_network: Callable[..., Any], make_examples: Callable[..., Any], pack: Callable[..., Any]
) -> None:
    network, batch = make_network(), pack(make_examples([100, 4]))
    noise = Noise(dropout=0.25, neftune_alpha=5.0, seed=1, place=(7, 0))
    embedded = network.embed(batch)
    difference = noise.add_to(embedded, batch) - embedded
    assert torch.equal(difference, noise.add_to(embedded, batch) - embedded)
    hidden = embedded.shape[1]
    for rows, length in ((slice(0, 100), 100), (slice(100, 104), 4)):
        bound = 5.0 / (length * hidden) ** 0.5
        assert 0.9 * bound < float(difference[rows].abs().max()) <= bound * (1 + 1e-4)
    dropout = noise.on_factors()
    assert dropout is not None
    mask = dropout.at(3).mask(embedded)
    assert torch.equal(mask, dropout.at(3).mask(embedded))
    assert not torch.equal(mask, dropout.at(4).mask(embedded))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_gradient_with_dropout_is_that_of_the_noisy_forward(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, batch = make_network(), pack(make_examples([12, 9]))
    factors = make_factors(network, **EVERY_LINEAR)
    noise = Noise(dropout=0.2, neftune_alpha=3.0, seed=1, place=(0,))
    loss = weighted_sum(batch.weights)

    def value() -> torch.Tensor:
        return loss(drain(Sweep(network, batch, factors, noise).score()).log_probs)

    drain(Sweep(network, batch, factors, noise).train(loss))
    direction = torch.randn(factors.values.shape, generator=torch.Generator().manual_seed(0))
    step = 2e-4 * direction
    start = factors.values.clone()
    with torch.no_grad():
        factors.values.copy_(start + step)
        above = value()
        factors.values.copy_(start - step)
        below = value()
    assert factors.gradient is not None
    slope = float((factors.gradient * step).sum()) * 2
    assert float(above - below) == pytest.approx(slope, rel=2e-2)


def test_base_bytes_are_untouched_and_no_grad_is_left_on_them(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, batch = make_network("qwen2"), pack(make_examples(LENGTHS))
    before = {name: tensor.clone() for name, tensor in network._weights.tensors()}
    factors = make_factors(network, **EVERY_LINEAR)
    drain(Sweep(network, batch, factors).train(weighted_sum(batch.weights)))
    for name, tensor in network._weights.tensors():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None
        assert not tensor.requires_grad


def test_a_quantized_head_scores_as_its_decoded_form(
    open_network: Callable[..., Any],
    model_folder: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    reference_model: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    base = BaseConfig(model="", dtype="float32", quantize_head=True)
    network = open_network(model_folder("mistral"), base)
    factors, examples = make_factors(network, **EVERY_LINEAR), make_examples([20, 9], first=2)
    batch = pack(examples)
    drain(Sweep(network, batch, factors).train(weighted_sum(batch.weights)))
    model = reference_model("mistral")
    model.lm_head.weight.data = nf4.dequantize(quantize(model.lm_head.weight.data))
    _, expected = peft_gradients(model, EVERY_LINEAR, factors, examples)
    ours = factors.gradients()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() < 1e-5 * gradient.norm(), name


def test_log_probs_of_a_large_vocabulary_come_in_chunks(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, batch = make_network(), pack(make_examples([30, 20]))
    factors = make_factors(network, **EVERY_LINEAR)
    whole = drain(Sweep(network, batch, factors).train(weighted_sum(batch.weights)))
    gradient = factors.gradient.clone()
    factors.gradient.zero_()
    monkeypatch.setattr("multiflora.engine.training.head_size.MAX_CHUNK_ROWS", 7)
    quanta = list(Sweep(network, batch, factors).train(weighted_sum(batch.weights)))
    assert [q.num_tokens for q in quanta if q.kind == "loss"] == [7, 7, 7, 7, 7, 7, 2]
    pieces = drain(Sweep(network, batch, factors).score())
    torch.testing.assert_close(pieces.log_probs, whole.log_probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces.entropies, whole.entropies, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(factors.gradient, gradient, rtol=1e-4, atol=1e-6)
