"""PEFT's adapter folder: which module gets which rank and scale, and where its tensors are.

Semantics follow PEFT 0.21 (`LoraConfig`, `check_target_module_exists`, `get_pattern_key`). Only
what is served exactly passes; everything else is refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .error import AdapterRejected
from .target import TargetModule

PREFIX = "base_model.model."
_MAX_PATTERN = 512
# Far above any real rank; what a server accepts is the gate's limit.
_MAX_RANK = 1 << 16
# The regexes that PEFT builds around a pattern's text.
_KEY_FORM = r"(.*\.)?({})$"
_LAYER_FORM = r".*\.{}\.(\d+)\."

# Keys that never change what a finished adapter computes.
_NEUTRAL_KEYS = frozenset(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout loftq_config eva_config corda_config lora_ga_config megatron_config "
    "megatron_core qalora_group_size ensure_weight_tying runtime_config".split()
)
_USED_KEYS = frozenset(
    "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules "
    "layers_to_transform layers_pattern bias init_lora_weights".split()
)
# Features with a name people know; any value but a neutral one is refused with this remedy.
_UNSERVED_KEYS: Mapping[str, str] = {
    "use_dora": "DoRA is not served yet; retrain with use_dora=False",
    "modules_to_save": "fully trained modules are not served yet; retrain without modules_to_save",
    "trainable_token_indices": "trained token embeddings are not served yet",
    "lora_bias": "biases on lora_B are not served yet; retrain with lora_bias=False",
    "layer_replication": "layer replication needs another base model",
    "fan_in_fan_out": "fan_in_fan_out belongs to Conv1D bases, which are not supported",
    "alora_invocation_tokens": "activated LoRA is not served yet",
    "target_parameters": "LoRA on bare parameters (experts) is not served yet",
    "use_qalora": "QA-LoRA is not served yet",
}
# Initialisations that subtract the start from the base, so the base is no longer the shared one.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """LoRA of one linear: ``delta = scale * B @ A`` with A [rank, K] and B [N, rank]."""

    path: str
    rank: int
    scale: float
    a_name: str
    b_name: str


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

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        rank = self.rank_of(path)
        alpha = float(_by_pattern(self.alpha_pattern, path, self.alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, path: str) -> bool:
        """Whether PEFT would put an adapter on the linear at ``path``."""
        if _matches(self.exclude_modules, path):
            return False
        if self.target_modules == "all-linear":
            return True
        if not _matches(self.target_modules, path):
            return False
        return isinstance(self.target_modules, str) or self._is_layer_target(path)

    def _is_layer_target(self, path: str) -> bool:
        if self.layers_to_transform is None:
            return True
        if path in self.target_modules:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        for pattern in patterns:
            found = re.match(_LAYER_FORM.format(pattern), path)
            if found:
                return int(found.group(1)) in self.layers_to_transform
        return False


def parse_settings(config: Mapping[str, Any]) -> LoraSettings:
    """Read ``adapter_config.json``; raises ``AdapterRejected`` for what is not served exactly."""
    _refuse_unserved(config)
    rank = _positive_int(config.get("r"), "r")
    return LoraSettings(
        rank=rank,
        alpha=_finite(config.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_flag(config.get("use_rslora"), "use_rslora"),
        rank_pattern={
            _key_pattern(k, "rank_pattern"): _positive_int(v, f"rank_pattern[{k!r}]")
            for k, v in _table(config.get("rank_pattern"), "rank_pattern").items()
        },
        alpha_pattern={
            _key_pattern(k, "alpha_pattern"): _finite(v, f"alpha_pattern[{k!r}]")
            for k, v in _table(config.get("alpha_pattern"), "alpha_pattern").items()
        },
        target_modules=_names(config.get("target_modules"), "target_modules"),
        exclude_modules=_names(config.get("exclude_modules") or (), "exclude_modules"),
        layers_to_transform=_layers(config.get("layers_to_transform")),
        layers_pattern=_patterns(config.get("layers_pattern")),
    )


def resolve_modules(
    settings: LoraSettings, shapes: Mapping[str, tuple[int, ...]], targets: Iterable[TargetModule]
) -> tuple[ModuleSpec, ...]:
    """Match every tensor to a module of the base, in the base's order.

    Raises ``AdapterRejected`` if a tensor matches nothing, has the wrong shape, or is missing.
    """
    remaining = dict(shapes)
    known = {target.path for target in targets}
    specs = [_resolve(settings, remaining, t) for t in targets if settings.is_target(t.path)]
    if remaining:
        _refuse_surplus(sorted(remaining), known)
    if not specs:
        raise AdapterRejected("no_target", "target_modules matches no linear module of this base")
    return tuple(specs)


def _resolve(
    settings: LoraSettings, remaining: dict[str, tuple[int, ...]], target: TargetModule
) -> ModuleSpec:
    rank = settings.rank_of(target.path)
    a_name = f"{PREFIX}{target.path}.lora_A.weight"
    b_name = f"{PREFIX}{target.path}.lora_B.weight"
    for name, expected in (
        (a_name, (rank, target.in_features)),
        (b_name, (target.out_features, rank)),
    ):
        found = remaining.pop(name, None)
        if found is None:
            raise AdapterRejected(
                "missing_tensor",
                f"{name} is missing although adapter_config.json targets {target.path}",
            )
        if found != expected:
            raise AdapterRejected(
                "wrong_shape",
                f"{name} is {list(found)}, this base and config need {list(expected)}; "
                "was the adapter trained on another base?",
            )
    return ModuleSpec(target.path, rank, settings.scale_of(target.path), a_name, b_name)


def _refuse_surplus(names: list[str], known: set[str]) -> None:
    name = names[0]
    path = name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]
    if "lora_embedding" in name or "embed_tokens" in name or "lm_head" in name:
        reason = "adapters on embeddings or lm_head are not served yet"
    elif "lora_magnitude_vector" in name:
        reason = "DoRA is not served yet"
    elif path in known:
        reason = "adapter_config.json does not target that module"
    else:
        reason = "this base has no such module; was the adapter trained on another base?"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    raise AdapterRejected("unmatched_tensor", f"tensor {name}{more}: {reason}")


def _refuse_unserved(config: Mapping[str, Any]) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterRejected(
            "unsupported_type", f"peft_type is {peft_type!r}; only LORA is served"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRejected(
            "unsupported_feature", f"bias={config['bias']!r} is not served yet; retrain with 'none'"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise AdapterRejected(
            "unsupported_feature",
            f"init_lora_weights={init!r} changes the base; convert the adapter with "
            "path_initial_model_for_weight_conversion when saving",
        )
    for key, value in config.items():
        if key in _NEUTRAL_KEYS | _USED_KEYS or not value:
            continue
        remedy = _UNSERVED_KEYS.get(key, "unknown key, which might change the mathematics")
        raise AdapterRejected("unsupported_feature", f"{key}={value!r}: {remedy}")


def _by_pattern(patterns: Mapping[re.Pattern[str], float], path: str, default: float) -> float:
    for pattern, value in patterns.items():
        if pattern.match(path):
            return value
    return default


def _matches(names: str | tuple[str, ...], path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _positive_int(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise AdapterRejected(
            "invalid_config",
            f"{name} is {value!r}; it must be a whole number from 1 to {_MAX_RANK}",
        )
    return value


def _finite(value: Any, name: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be a finite number")


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be true or false")
    return bool(value)


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be an object")
    return value or {}


def _key_pattern(pattern: str, name: str) -> re.Pattern[str]:
    return re.compile(_KEY_FORM.format(_regex(pattern, name, form=_KEY_FORM)))


def _regex(pattern: str, name: str, *, form: str = "{}") -> str:
    """Check ``pattern`` by itself and inside ``form``, where it is used."""
    if len(pattern) > _MAX_PATTERN:
        raise AdapterRejected(
            "invalid_config",
            f"a pattern in {name} has {len(pattern)} characters, over {_MAX_PATTERN}",
        )
    try:
        re.compile(pattern)
        re.compile(form.format(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterRejected(
            "invalid_config", f"{name}: {pattern!r} is no regex: {error}"
        ) from error
    return pattern


def _names(value: Any, name: str) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _regex(value, name)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be a string or a list")


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    items = value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in items):
        raise AdapterRejected(
            "invalid_config", f"layers_to_transform is {value!r}; it must be a number or a list"
        )
    return tuple(items)


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _names(value or (), "layers_pattern")
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    for pattern in patterns:
        # PEFT reads the layer's number from group 1; a group before it would be read instead.
        if re.compile(_regex(pattern, "layers_pattern", form=_LAYER_FORM)).groups:
            raise AdapterRejected(
                "invalid_config", f"layers_pattern {pattern!r} has a group; write (?:...)"
            )
    return patterns
