"""PEFT's ``modules_to_save``: modules of the base that an adapter replaces as a whole."""

from collections.abc import Mapping
from typing import Any

from .error import AdapterRejected
from .module_spec import PREFIX, ModuleSpec, TensorShapes
from .peft_value import names
from .target import TargetModule

_SERVED = ("lm_head", "embed_tokens")


def saved_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that the config replaces; raises ``AdapterRejected`` for one that has to stay.

    Layers of the decoder are shared by every row of a step, and a norm or a linear of its own for
    some of them would need a second resident layer.
    """
    found = names(config.get("modules_to_save") or (), "modules_to_save")
    modules = (found,) if isinstance(found, str) else found
    for module in modules:
        if module not in _SERVED:
            raise AdapterRejected(
                "unsupported_feature",
                f"modules_to_save={module!r}: only {' and '.join(_SERVED)} can be replaced by an "
                "adapter; retrain with LoRA on that module",
            )
    if modules and config.get("ensure_weight_tying"):
        raise AdapterRejected(
            "unsupported_feature",
            "ensure_weight_tying with modules_to_save is not served; save both modules instead",
        )
    return modules


def is_saved(modules: tuple[str, ...], target: TargetModule) -> bool:
    """PEFT never puts an adapter on a module that it saves."""
    return any(target.path == name or target.path.endswith(f".{name}") for name in modules)


def take_saved(target: TargetModule, shapes: TensorShapes) -> ModuleSpec:
    """Claim the whole matrix of ``target``."""
    name = shapes.take(f"{PREFIX}{target.path}.weight", target.weight_shape, target.path)
    return ModuleSpec(target.path, 0, 0.0, "", "", weight=name)
