"""Loss curves against TRL's trainers: same weights, rows, order and rates, step by step."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.training.config import (
    BatchSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    ScheduleSettings,
)
from multiflora.engine.training.example import Example, Preference
from multiflora.engine.training.quantum import StepTaken

# TRL asks transformers, and datasets ask pyarrow and multiprocessing, in ways that are retiring.
pytestmark = pytest.mark.filterwarnings("ignore")
NUM_STEPS = [12, pytest.param(100, marks=pytest.mark.full)]
RATE = 2e-3
SHAPES = [
    (9, 5, 8),
    (4, 12, 3),
    (20, 6, 6),
    (3, 3, 14),
    (11, 2, 2),
    (7, 9, 4),
    (2, 5, 5),
    (8, 8, 2),
]


def our_run(
    make_run: Callable[..., Any],
    rows: list[Any],
    num_steps: int,
    *,
    use_dora: bool = False,
    weight_decay: float = 0.0,
    **settings: Any,
) -> Any:
    return make_run(
        rows,
        lora=LoraSettings(rank=4, alpha=8, use_dora=use_dora),
        optimizer=OptimizerSettings(learning_rate=RATE, weight_decay=weight_decay),
        schedule=ScheduleSettings(kind="cosine", warmup_steps=3),
        batch=BatchSettings(batch_size=4, num_epochs=1000, max_steps=num_steps, shuffle=False),
        **settings,
    )


def peft_model(model: Any, run: Any) -> Any:
    """The transformers model with the run's factors as they are."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    values = run._settings.lora.adapter_config(model.config._name_or_path)
    found = get_peft_model(model, LoraConfig(**{**values, "inference_mode": False}))
    loaded: Any = set_peft_model_state_dict(found, run.factors.tensors())
    assert not loaded.unexpected_keys
    return found


def trainer_settings(folder: Path, num_steps: int, weight_decay: float = 0.0) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": num_steps,
        "per_device_train_batch_size": 4,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": weight_decay,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_length": None,
        "dataloader_pin_memory": False,
    }


def history(trainer: Any) -> list[dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_curves(
    ours: list[StepTaken], theirs: list[dict[str, float]], names: list[str]
) -> None:
    assert len(ours) == len(theirs)
    for event, entry in zip(ours, theirs, strict=True):
        for name in names:
            where = (event.step, name)
            # After 100 steps the losses are within 2e-6; rewards start at nothing.
            assert event.metrics[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-4), where


@pytest.mark.parametrize(
    ("num_steps", "kind"),
    [
        (12, {}),
        (12, {"use_dora": True, "weight_decay": 0.1}),
        pytest.param(100, {}, marks=pytest.mark.full),
        pytest.param(100, {"use_dora": True, "weight_decay": 0.1}, marks=pytest.mark.full),
    ],
    ids=["12", "12-dora", "100", "100-dora"],
)
def test_supervised_curve_equals_trl(
    num_steps: int,
    kind: dict[str, Any],
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_examples: Callable[..., Any],
    reference_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows: list[Example] = make_examples([30, 12, 45, 7, 22, 18, 9, 40, 26, 33, 15, 21])
    run = our_run(make_run, rows, num_steps, **kind)
    model = reference_model("llama")
    labels = [
        [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)]
        for row in rows
    ]
    trainer = SFTTrainer(
        model=peft_model(model, run),
        args=SFTConfig(
            **trainer_settings(tmp_path, num_steps, kind.get("weight_decay", 0.0)),
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=datasets.Dataset.from_dict(
            {"input_ids": [list(row.ids) for row in rows], "labels": labels}
        ),
        processing_class=tokenizer_of(model),
    )
    theirs = history(trainer)
    ours = [event for event in finish(run) if isinstance(event, StepTaken)]
    names = ["loss", "grad_norm", "mean_token_accuracy", "entropy", "num_tokens", "epoch"]
    assert_equal_curves(ours, theirs, names)
    assert ours[-1].metrics["loss"] < 0.95 * ours[0].metrics["loss"]


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_preference_curve_equals_trl(
    num_steps: int,
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_preferences: Callable[..., Any],
    reference_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class TokenTrainer(DPOTrainer):
        """Takes rows that are tokens already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    rows: list[Preference] = make_preferences(SHAPES)
    run = our_run(make_run, rows, num_steps, method=PreferenceSettings(beta=0.2))
    model = reference_model("llama")
    trainer = TokenTrainer(
        model=peft_model(model, run),
        args=DPOConfig(**trainer_settings(tmp_path, num_steps), beta=0.2),
        train_dataset=datasets.Dataset.from_dict(
            {
                f"{part}_ids": [list(getattr(row, part)) for row in rows]
                for part in ("prompt", "chosen", "rejected")
            }
        ),
        processing_class=tokenizer_of(model),
    )
    theirs = history(trainer)
    ours = [event for event in finish(run) if isinstance(event, StepTaken)]
    names = ["loss", "grad_norm", "mean_token_accuracy", "entropy", "epoch"]
    names += [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    assert_equal_curves(ours, theirs, [*names, "logps/chosen", "logps/rejected"])
    assert ours[-1].metrics["loss"] < 0.6


def tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.config._name_or_path)
