"""From a config and the shapes of its tensors to what the adapter does to each module."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from .error import AdapterRejected
from .ia3_format import Ia3Settings, parse_ia3
from .module_spec import PREFIX, ModuleSpec, TensorShapes
from .peft_format import LoraSettings, parse_lora
from .target import TargetModule

Settings: TypeAlias = LoraSettings | Ia3Settings


def parse_config(config: Mapping[str, Any]) -> Settings:
    """Read ``adapter_config.json`` of any served type; raises ``AdapterRejected``."""
    match config.get("peft_type"):
        case "LORA":
            return parse_lora(config)
        case "IA3":
            return parse_ia3(config)
        case other:
            raise AdapterRejected(
                "unsupported_type", f"peft_type is {other!r}; only LORA and IA3 are served"
            )


def resolve_modules(
    settings: Settings, shapes: Mapping[str, tuple[int, ...]], targets: Iterable[TargetModule]
) -> tuple[ModuleSpec, ...]:
    """Match every tensor to a module of the base, in the base's order.

    Raises ``AdapterRejected`` if a tensor matches nothing, has the wrong shape, or is missing.
    """
    remaining = TensorShapes(shapes)
    known: set[str] = set()
    specs: list[ModuleSpec] = []
    for target in targets:
        known.add(target.path)
        if spec := settings.spec_of(target, remaining):
            specs.append(spec)
    if remaining.names:
        _refuse_surplus(remaining.names, known, settings)
    if not any(spec.has_lora or spec.output_scale or spec.input_scale for spec in specs):
        raise AdapterRejected("no_target", "target_modules matches no linear module of this base")
    return tuple(specs)


def _refuse_surplus(names: list[str], known: set[str], settings: Settings) -> None:
    name = names[0]
    path = name.removeprefix(PREFIX)
    for ending in (".lora_", ".ia3_l", ".base_layer.", ".weight", ".bias"):
        path = path.rsplit(ending, 1)[0]
    if path not in known:
        reason = "this base has no such module; was the adapter trained on another base?"
    elif "lora_magnitude_vector" in name:
        reason = "adapter_config.json has no use_dora"
    elif name.endswith(".bias"):
        reason = "adapter_config.json trains no such bias, or this base has none"
    elif name.endswith(f"{path}.weight"):
        reason = "adapter_config.json does not name that module in modules_to_save"
    elif isinstance(settings, LoraSettings) == (".ia3_l" in name):
        reason = "it belongs to another peft_type than adapter_config.json says"
    else:
        reason = "adapter_config.json does not target that module"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    raise AdapterRejected("unmatched_tensor", f"tensor {name}{more}: {reason}")
