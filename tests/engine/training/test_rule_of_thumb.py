"""Textbook examples, by rule of thumb and by what this engine counts."""

import pytest

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.size import BaseSize
from multiflora.engine.training.config import BatchSettings, LoraSettings, TrainingSettings
from multiflora.engine.training.estimate import estimate_memory
from multiflora.engine.training.rule_of_thumb import (
    Optimizer,
    count_parameters,
    full_training,
    lora_parameters,
    serving_bytes,
)

BILLION = 10**9
SEVEN_B = ModelConfig(
    family="llama",
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    norm_eps=1e-5,
    max_position=4096,
)


def test_serving_thirteen_billion_takes_a_fifth_more_than_the_weights() -> None:
    assert serving_bytes(13 * BILLION, item=2) == 31_200_000_000


@pytest.mark.parametrize(
    ("parameters", "optimizer", "gigabytes"),
    [(13, "momentum", 78), (1, "momentum", 6), (7, "adam", 56), (7, "sgd", 28)],
)
def test_full_training_takes_a_copy_for_gradients_and_for_each_state(
    parameters: int, optimizer: Optimizer, gigabytes: int
) -> None:
    memory = full_training(parameters * BILLION, item=2, optimizer=optimizer)
    assert memory.total == gigabytes * BILLION


def test_adam_keeps_twice_the_weights_of_seven_billion() -> None:
    memory = full_training(7 * BILLION, item=2, optimizer="adam")
    parts = (memory.weights, memory.gradients, memory.optimizer)
    assert parts == (14 * BILLION, 14 * BILLION, 28 * BILLION)


def test_rank_sixteen_is_under_one_percent_of_a_square_matrix() -> None:
    adapter, matrix = lora_parameters(4096, 4096, rank=16), 4096 * 4096
    assert (adapter, matrix) == (131_072, 16_777_216)
    assert round(100 * adapter / matrix, 2) == 0.78


@pytest.mark.parametrize(("num_matrices", "rank"), [(1, 8), (2, 4), (4, 2)])
def test_a_budget_buys_one_matrix_at_rank_eight_or_four_at_rank_two(
    num_matrices: int, rank: int
) -> None:
    per_layer = num_matrices * lora_parameters(12_288, 12_288, rank=rank)
    assert (per_layer, 96 * per_layer) == (196_608, 18_874_368)


@pytest.mark.parametrize(
    ("quantization", "tokens", "gigabytes"), [("none", 8192, 18), ("nf4", 2048, 6)]
)
def test_seven_billion_take_about_what_is_said_of_lora_and_qlora(
    quantization: str, tokens: int, gigabytes: float
) -> None:
    base = BaseConfig(model="7b", quantization=quantization)  # pyright: ignore[reportArgumentType]
    settings = TrainingSettings(
        lora=LoraSettings(rank=16, alpha=32), batch=BatchSettings(micro_batch_tokens=tokens)
    )
    memory = estimate_memory(
        *(SEVEN_B, settings),
        dtype="bfloat16",
        kernels="triton",
        is_quantized=quantization == "nf4",
    )
    total = BaseSize.measure(base, SEVEN_B, "bfloat16", None).total + memory.device_bytes
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.05)
    assert 0.001 < memory.factors / 4 / count_parameters(SEVEN_B) < 0.01


def test_the_parameters_of_a_known_base_are_counted() -> None:
    assert count_parameters(SEVEN_B) == 6_738_415_616
