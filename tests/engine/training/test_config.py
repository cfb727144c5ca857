"""Settings name the value, the limit and the remedy; modules are the ones PEFT would adapt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.models.registry import load_model_config
from multiflora.engine.training import config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config.LoraSettings(rank=0), "rank is 0; it must be 1 to 1024"),
        (lambda: config.LoraSettings(dropout=1.0), "dropout is 1.0"),
        (lambda: config.LoraSettings(alpha=float("nan")), "alpha is nan"),
        (lambda: config.LoraSettings(rank_pattern={"q_proj": 9999}), r"rank_pattern\['q_proj'\]"),
        (
            lambda: config.LoraSettings(target_modules=".*q_proj", layers_to_transform=(1,)),
            r"layers_to_transform is \(1,\); .*name the layers in target_modules",
        ),
        (lambda: config.OptimizerSettings(learning_rate=0), "learning_rate is 0"),
        (lambda: config.OptimizerSettings(max_grad_norm=0), "max_grad_norm is 0"),
        (lambda: config.ScheduleSettings(kind="step"), "linear, cosine, constant"),  # type: ignore[arg-type]
        (lambda: config.BatchSettings(batch_size=0), "batch_size is 0; it must be at least 1"),
        (lambda: config.SupervisedSettings(neftune_alpha=-1), "neftune_alpha is -1"),
        (lambda: config.PreferenceSettings(loss="dpo"), "loss is dpo"),  # type: ignore[arg-type]
        (lambda: config.PreferenceSettings(beta=0), "beta is 0"),
        (lambda: config.PreferenceSettings(loss="ipo", label_smoothing=0.1), "use sigmoid or rob"),
        (lambda: config.EvaluationSettings(patience=0), "patience is 0"),
        (lambda: config.CheckpointSettings(keep=0), "keep is 0"),
    ],
)
def test_a_bad_value_is_refused_with_its_limit(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear", "exclude_modules": ("o_proj",)},
        {"target_modules": ("q_proj", "down_proj"), "layers_to_transform": (0, 2)},
        {"target_modules": r".*\.1\.mlp\.(up|down)_proj", "use_rslora": True},
        {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 9}},
    ],
)
def test_modules_are_those_that_peft_adapts(
    settings: dict[str, Any],
    model_folder: Callable[[str], Path],
    reference_model: Callable[..., Any],
) -> None:
    from peft import LoraConfig, get_peft_model

    chosen = config.LoraSettings(rank=4, alpha=8, **settings)
    values = chosen.adapter_config(str(model_folder("llama")))
    peft_model: Any = get_peft_model(reference_model("llama"), LoraConfig(**values))
    expected = {
        name.replace(".default", ""): tuple(parameter.shape)
        for name, parameter in peft_model.named_parameters()
        if "lora_" in name
    }
    modules = chosen.modules(load_model_config(model_folder("llama")))
    assert {name for m in modules for name in (m.a_name, m.b_name)} == expected.keys()
    for module in modules:
        assert expected[module.a_name][0] == module.rank
        layer = peft_model.get_submodule(f"base_model.model.{module.path}")
        assert layer.scaling["default"] == module.scale


def test_a_target_that_matches_nothing_is_refused(model_folder: Callable[[str], Path]) -> None:
    model = load_model_config(model_folder("llama"))
    with pytest.raises(ValueError, match=r"target_modules is .*qkv.*names of this base"):
        config.LoraSettings(target_modules=("qkv",)).modules(model)
    with pytest.raises(ValueError, match="target_modules"):
        config.LoraSettings(target_modules="(").modules(model)
