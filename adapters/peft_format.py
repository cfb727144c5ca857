"""PEFT's LoRA folder: which module gets which rank and scale, and where its tensors are.

Semantics follow PEFT 0.21 (`LoraConfig`, `check_target_module_exists`, `get_pattern_key`). Only
what is served exactly passes; everything else is refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .error import AdapterRejected
from .module_spec import PREFIX, ModuleSpec, TensorShapes
from .peft_value import (
    LAYER_FORM,
    finite,
    flag,
    key_pattern,
    layer_patterns,
    layers,
    matches,
    names,
    one_of,
    positive_int,
    table,
)
from .saved_module import is_saved, saved_modules, take_saved
from .target import TargetModule

__all__ = ["PREFIX", "LoraSettings", "ModuleSpec", "parse_lora", "parse_settings"]

# Keys that never change what a finished adapter computes.
NEUTRAL_KEYS = frozenset(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout loftq_config eva_config corda_config lora_ga_config megatron_config "
    "megatron_core qalora_group_size runtime_config".split()
)
_USED_KEYS = frozenset(
    "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules "
    "layers_to_transform layers_pattern bias init_lora_weights use_dora lora_bias modules_to_save "
    "ensure_weight_tying".split()
)
# Features with a name people know; any value but a neutral one is refused with this remedy.
_UNSERVED_KEYS: Mapping[str, str] = {
    "trainable_token_indices": "trained token embeddings are not served yet",
    "layer_replication": "layer replication needs another base model",
    "fan_in_fan_out": "fan_in_fan_out belongs to Conv1D bases, which are not supported",
    "alora_invocation_tokens": "activated LoRA is not served yet",
    "target_parameters": "LoRA on bare parameters (experts) is not served yet",
    "use_qalora": "QA-LoRA is not served yet",
}
# Initialisations that subtract the start from the base, so the base is no longer the shared one.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The part of ``adapter_config.json`` that decides the mathematics."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    ties_weights: bool = False

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        rank = self.rank_of(path)
        alpha = float(_by_pattern(self.alpha_pattern, path, self.alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, path: str) -> bool:
        """Whether PEFT would put an adapter on the decoder's linear at ``path``."""
        if matches(self.exclude_modules, path):
            return False
        if self.target_modules == "all-linear":
            return True
        if not matches(self.target_modules, path):
            return False
        return isinstance(self.target_modules, str) or self._is_layer_target(path)

    def _is_layer_target(self, path: str) -> bool:
        if self.layers_to_transform is None:
            return True
        if path in self.target_modules:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        for pattern in patterns:
            found = re.match(LAYER_FORM.format(pattern), path)
            if found:
                return int(found.group(1)) in self.layers_to_transform
        return False

    def spec_of(self, target: TargetModule, shapes: TensorShapes) -> ModuleSpec | None:
        """Claim the tensors of ``target``; None if the adapter leaves it alone.

        Raises ``AdapterRejected`` if one is missing or has the wrong shape.
        """
        if is_saved(self.modules_to_save, target):
            return take_saved(target, shapes)
        is_target = self.is_target(target.path)
        if target.kind != "linear" and self.target_modules == "all-linear":
            is_target = False
        if is_target:
            return self._take_lora(target, shapes)
        if self.bias == "all" and target.has_bias:
            name = shapes.take(f"{PREFIX}{target.path}.bias", (target.out_features,), target.path)
            return ModuleSpec(target.path, 0, 0.0, "", "", bias=name)
        return None

    def _take_lora(self, target: TargetModule, shapes: TensorShapes) -> ModuleSpec:
        self._check_kind(target)
        rank, path, width = self.rank_of(target.path), target.path, (target.out_features,)
        module = f"{PREFIX}{path}"
        factor = "lora_embedding_{}" if target.kind == "embedding" else "lora_{}.weight"
        has_bias = self.bias != "none" and target.has_bias
        return ModuleSpec(
            path,
            rank,
            self.scale_of(path),
            shapes.take(f"{module}.{factor.format('A')}", (rank, target.in_features), path),
            shapes.take(f"{module}.{factor.format('B')}", (target.out_features, rank), path),
            magnitude=self._take_magnitude(target, shapes) if self.use_dora else None,
            lora_bias=shapes.take(f"{module}.lora_B.bias", width, path) if self.lora_bias else None,
            bias=shapes.take(f"{module}.base_layer.bias", width, path) if has_bias else None,
            base_copy=shapes.take_base_copy(target),
        )

    def _take_magnitude(self, target: TargetModule, shapes: TensorShapes) -> str:
        # PEFT saves the bare name and also loads the name of the parameter itself.
        name = f"{PREFIX}{target.path}.lora_magnitude_vector"
        if f"{name}.weight" in shapes and name not in shapes:
            name = f"{name}.weight"
        return shapes.take(name, (target.out_features,), target.path)

    def _check_kind(self, target: TargetModule) -> None:
        if target.kind == "linear":
            return
        for is_used, what in (
            (self.ties_weights, "ensure_weight_tying, which ties one adapter to two modules"),
            (self.lora_bias and target.kind == "embedding", "lora_bias, which PEFT has not either"),
        ):
            if is_used:
                raise AdapterRejected(
                    "unsupported_feature", f"{target.path} with {what}: this is not served"
                )


def parse_settings(config: Mapping[str, Any]) -> LoraSettings:
    """Plain LoRA's settings: for those who know nothing but ``scale * B @ A`` on linears.

    Raises ``AdapterRejected`` for an adapter that has more.
    """
    settings = parse_lora(config)
    for key in ("use_dora", "lora_bias", "modules_to_save"):
        if getattr(settings, key):
            raise AdapterRejected("unsupported_feature", f"{key}={config[key]!r}: not plain LoRA")
    if settings.bias != "none":
        raise AdapterRejected("unsupported_feature", f"bias={settings.bias!r}: not plain LoRA")
    return settings


def parse_lora(config: Mapping[str, Any]) -> LoraSettings:
    """Read ``adapter_config.json``; raises ``AdapterRejected`` for what is not served exactly."""
    _refuse_unserved(config)
    use_dora, lora_bias = flag(config.get("use_dora"), "use_dora"), config.get("lora_bias")
    if use_dora and lora_bias:
        raise AdapterRejected("invalid_config", "PEFT has no lora_bias with use_dora; drop one")
    return LoraSettings(
        rank=positive_int(config.get("r"), "r"),
        alpha=finite(config.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=flag(config.get("use_rslora"), "use_rslora"),
        rank_pattern={
            key_pattern(k, "rank_pattern"): positive_int(v, f"rank_pattern[{k!r}]")
            for k, v in table(config.get("rank_pattern"), "rank_pattern").items()
        },
        alpha_pattern={
            key_pattern(k, "alpha_pattern"): finite(v, f"alpha_pattern[{k!r}]")
            for k, v in table(config.get("alpha_pattern"), "alpha_pattern").items()
        },
        target_modules=names(config.get("target_modules"), "target_modules"),
        exclude_modules=names(config.get("exclude_modules") or (), "exclude_modules"),
        layers_to_transform=layers(config.get("layers_to_transform")),
        layers_pattern=layer_patterns(config.get("layers_pattern")),
        use_dora=use_dora,
        lora_bias=flag(lora_bias, "lora_bias"),
        bias=one_of(config.get("bias", "none"), "bias", _BIASES),
        modules_to_save=saved_modules(config),
        ties_weights=flag(config.get("ensure_weight_tying"), "ensure_weight_tying"),
    )


def refuse_unknown_keys(
    config: Mapping[str, Any], known: Iterable[str], unserved: Mapping[str, str]
) -> None:
    """Refuse every key that might change the mathematics and is not ``known``."""
    harmless = frozenset(known)
    for key, value in config.items():
        if key not in harmless and value:
            remedy = unserved.get(key, "unknown key, which might change the mathematics")
            raise AdapterRejected("unsupported_feature", f"{key}={value!r}: {remedy}")


def _refuse_unserved(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterRejected(
            "unsupported_type", f"peft_type is {config.get('peft_type')!r}, not LORA"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise AdapterRejected(
            "unsupported_feature",
            f"init_lora_weights={init!r} changes the base; convert the adapter with "
            "path_initial_model_for_weight_conversion when saving",
        )
    refuse_unknown_keys(config, NEUTRAL_KEYS | _USED_KEYS, _UNSERVED_KEYS)


def _by_pattern(patterns: Mapping[re.Pattern[str], float], path: str, default: float) -> float:
    for pattern, value in patterns.items():
        if pattern.match(path):
            return value
    return default
