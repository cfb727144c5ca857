"""Which module gets which rank and scale, as PEFT itself decides it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.module_spec import PREFIX
from multiflora.adapters.peft_format import parse_settings
from multiflora.adapters.resolution import parse_config, resolve_modules
from multiflora.adapters.target import Projection

LINEARS = [
    *(f"model.layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qkvo"),
    *(f"model.layers.{i}.mlp.{n}_proj" for i in range(3) for n in ("gate", "up", "down")),
]


class Decoder(torch.nn.Module):
    """Modules with the right names, for PEFT to wrap."""

    config: Any = None

    def __init__(self) -> None:
        super().__init__()
        for path in LINEARS:
            owner: torch.nn.Module = self
            *parents, name = path.split(".")
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, torch.nn.Module())
                owner = owner.get_submodule(parent)
            owner.add_module(name, torch.nn.Linear(8, 8))


def peft_decides(**config: Any) -> dict[str, tuple[int, float]]:
    """Path -> (rank, scale) for every module that PEFT adapts."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    model = LoraModel(Decoder(), LoraConfig(**config), "default")
    return {
        name.removeprefix("model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(getattr(module, "lora_A", None), torch.nn.ModuleDict)
    }


def we_decide(**config: Any) -> dict[str, tuple[int, float]]:
    parsed = parse_settings({"peft_type": "LORA", **config})
    return {
        path: (parsed.rank_of(path), parsed.scale_of(path))
        for path in LINEARS
        if parsed.is_target(path)
    }


CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "mlp.up_proj"]},
    {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.[01]\.mlp\..*"},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": 1},
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
    },
    {"r": 9, "lora_alpha": 3, "target_modules": ["o_proj"], "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "exclude_modules": ["layers.1.self_attn.v_proj"],
    },
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "exclude_modules": r".*\.0\..*",
    },
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.2\..*": 7},
        "alpha_pattern": {"^model.layers.1.mlp.down_proj": 5, "k_proj": 1},
    },
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "rank_pattern": {"q_proj": 16},
        "use_rslora": True,
    },
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(list(config)[2:]))
def test_targets_ranks_and_scales_equal_pefts(config: dict[str, Any]) -> None:
    decided = peft_decides(**config)
    assert decided
    assert we_decide(**config) == decided


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(
        st.sampled_from(["q_proj", "v_proj", "mlp.up_proj", "layers.1.self_attn.o_proj", "proj"]),
        min_size=1,
        max_size=4,
    ),
    layers=st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=1, max_size=2)),
    patterns=st.dictionaries(
        st.sampled_from(["q_proj", r"layers\.0\..*", "up_proj", ".*o_proj"]), st.integers(1, 9)
    ),
    rslora=st.booleans(),
)
def test_any_combination_equals_pefts(
    names: Sequence[str], layers: list[int] | None, patterns: dict[str, int], rslora: bool
) -> None:
    config = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": list(names),
        "layers_to_transform": layers,
        "rank_pattern": patterns,
        "use_rslora": rslora,
    }
    ours = we_decide(**config)
    if ours:
        assert ours == peft_decides(**config)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "only LORA and IA3"),
    ({"peft_type": None}, "only LORA and IA3"),
    ({"use_dora": "yes"}, "use_dora"),
    ({"use_dora": True, "lora_bias": True}, "drop one"),
    ({"lora_bias": 1}, "lora_bias"),
    ({"bias": "some"}, "none, all, lora_only"),
    ({"modules_to_save": ["norm"]}, "'norm': only lm_head and embed_tokens"),
    ({"modules_to_save": ["model.lm_head"]}, "only lm_head"),
    ({"modules_to_save": 3}, "modules_to_save"),
    ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, "ensure_weight_tying"),
    ({"trainable_token_indices": [1]}, "token embeddings"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"fan_in_fan_out": True}, "Conv1D"),
    ({"alora_invocation_tokens": [3]}, "activated LoRA"),
    ({"target_parameters": ["experts.w"]}, "experts"),
    ({"use_qalora": True}, "QA-LoRA"),
    ({"use_bdlora": {"x": 1}}, "unknown key"),
    ({"a_feature_of_next_year": True}, "unknown key"),
    ({"init_lora_weights": "pissa_niter_16"}, "changes the base"),
    ({"init_lora_weights": "olora"}, "changes the base"),
    ({"r": 0}, "whole number"),
    ({"r": True}, "whole number"),
    ({"r": "8"}, "whole number"),
    ({"lora_alpha": float("nan")}, "finite"),
    ({"target_modules": None}, "target_modules"),
    ({"target_modules": "("}, "no regex"),
    ({"rank_pattern": {"x" * 600: 3}}, "600 characters"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
    ({"layers_to_transform": "all"}, "layers_to_transform"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_served_exactly_is_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **change}
    with pytest.raises(AdapterRejected, match=message):
        parse_config(config)


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}],
    ids=str,
)
def test_plain_lora_is_told_from_what_has_more(change: dict[str, Any]) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert parse_settings(config) == parse_config(config)
    with pytest.raises(AdapterRejected, match="not plain LoRA"):
        parse_settings({**config, **change})
    assert parse_config({**config, **change})


def test_neutral_values_and_training_only_keys_are_fine() -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1).to_dict()
    config |= {"peft_type": "LORA", "target_modules": ["q_proj"], "next_years_feature": None}
    assert parse_settings(config).rank == 4


def test_target_order_is_the_bases_own(projections: tuple[Projection, ...]) -> None:
    parsed = parse_settings(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": "all-linear"}
    )
    targets = [part for projection in projections for part in projection.slices]
    shapes = {}
    for target in reversed(targets):
        shapes[f"{PREFIX}{target.path}.lora_A.weight"] = (2, target.in_features)
        shapes[f"{PREFIX}{target.path}.lora_B.weight"] = (target.out_features, 2)
    resolved = resolve_modules(parsed, shapes, targets)
    assert [module.path for module in resolved] == [target.path for target in targets]
