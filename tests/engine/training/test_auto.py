"""Automatic values: sane at every size, and enough to learn a few rows by heart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.text.tokenizer import load_tokenizer
from multiflora.engine.training.auto import choose_auto_values
from multiflora.engine.training.config import (
    BatchSettings,
    LoraSettings,
    OptimizerSettings,
    TrainingSettings,
)
from multiflora.engine.training.example import Example
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.task_kind import make_task

DEMO = Path(__file__).parents[3] / "engine" / "demo" / "base"
KEYS = "red blue green tulip rose lily seven twelve garden river stone cloud bread sugar wolf fox"


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.booleans())
def test_values_are_valid_settings_at_every_size(
    num_rows: int, row_tokens: int, is_preference: bool
) -> None:
    model = load_model_config(DEMO)
    auto = choose_auto_values(
        model,
        num_rows=num_rows,
        num_tokens=num_rows * row_tokens,
        is_preference=is_preference,
    )
    LoraSettings(rank=auto.rank, alpha=auto.alpha)
    OptimizerSettings(learning_rate=auto.learning_rate, lora_plus_ratio=auto.lora_plus_ratio)
    BatchSettings(batch_size=auto.batch_size, num_epochs=auto.num_epochs)
    assert auto.batch_size <= num_rows


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "num_epochs"),
    [(1, 1, 40), (16, 1, 32), (100, 8, 5), (1000, 32, 3), (10_000, 64, 2), (100_000, 64, 1)],
)
def test_few_rows_are_repeated_and_many_are_not(
    num_rows: int, batch_size: int, num_epochs: int
) -> None:
    auto = choose_auto_values(load_model_config(DEMO), num_rows=num_rows, num_tokens=100 * num_rows)
    assert (auto.batch_size, auto.num_epochs) == (batch_size, num_epochs)


@pytest.mark.full
def test_automatic_values_learn_sixteen_rows_by_heart_in_forty_epochs(
    open_network: Callable[..., Any], tmp_path: Path
) -> None:
    network = open_network(DEMO, BaseConfig(model=str(DEMO)))
    tokenizer = load_tokenizer(DEMO)
    words = KEYS.split()
    rows = []
    for line, word in enumerate(words, start=1):
        answer = " ".join(words[(place * line * 7 + place) % 16] for place in (3, 5, 11))
        prompt = tokenizer.encode(f"<|user|>what is the secret of {word}?<|end|><|assistant|>")
        ids = (*prompt, *tokenizer.encode(f"{answer}<|end|>", add_special_tokens=False))
        weights = (0.0,) * len(prompt) + (1.0,) * (len(ids) - len(prompt))
        rows.append(Example(ids, weights, line))
    auto = choose_auto_values(
        network.config, num_rows=16, num_tokens=sum(len(row.ids) for row in rows)
    )
    settings = TrainingSettings(
        lora=LoraSettings(rank=auto.rank, alpha=auto.alpha),
        optimizer=OptimizerSettings(
            learning_rate=auto.learning_rate, lora_plus_ratio=auto.lora_plus_ratio
        ),
        batch=BatchSettings(batch_size=auto.batch_size, num_epochs=40),
    )
    task = make_task(rows, settings.method)
    run = TrainingRun(network, task, settings, folder=tmp_path, validation=task)
    last: dict[str, float] = {}
    while not run.has_ended:
        event = run.run_quantum().event
        if event is not None and not isinstance(event, StepTaken):
            last = dict(getattr(event, "metrics", last))
    assert last["eval_mean_token_accuracy"] == 1.0, last
    assert last["eval_perplexity"] < 1.5
