"""PEFT's (IA)^3 folder: vectors that scale the outputs or the inputs of linears.

Semantics follow PEFT 0.21 (`IA3Config`, `IA3Model`); the method is arXiv 2205.05638.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .error import AdapterRejected
from .module_spec import PREFIX, ModuleSpec, TensorShapes
from .peft_format import NEUTRAL_KEYS, refuse_unknown_keys
from .peft_value import matches, names
from .saved_module import is_saved, saved_modules, take_saved
from .target import Projection, TargetModule

_USED_KEYS = frozenset(
    "peft_type target_modules exclude_modules feedforward_modules modules_to_save "
    "init_ia3_weights".split()
)
_UNSERVED_KEYS: Mapping[str, str] = {
    "fan_in_fan_out": "fan_in_fan_out belongs to Conv1D bases, which are not supported",
}


@dataclass(frozen=True, slots=True)
class Ia3Settings:
    """The part of ``adapter_config.json`` that decides the mathematics."""

    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    feedforward_modules: str | tuple[str, ...]
    modules_to_save: tuple[str, ...]

    def spec_of(self, target: TargetModule, shapes: TensorShapes) -> ModuleSpec | None:
        """Claim the tensors of ``target``; None if the adapter leaves it alone.

        Raises ``AdapterRejected`` if one is missing or has the wrong shape.
        """
        if is_saved(self.modules_to_save, target):
            return take_saved(target, shapes)
        if not self._is_target(target):
            return None
        if target.kind == "embedding":
            raise AdapterRejected(
                "unsupported_feature", f"{target.path}: PEFT has no (IA)^3 on embeddings"
            )
        name, path = f"{PREFIX}{target.path}.ia3_l", target.path
        is_input = self._scales_input(path)
        shape = (1, target.in_features) if is_input else (target.out_features, 1)
        vector = shapes.take(name, shape, path)
        return ModuleSpec(
            path,
            0,
            0.0,
            "",
            "",
            input_scale=vector if is_input else None,
            output_scale=None if is_input else vector,
            base_copy=shapes.take_base_copy(target),
        )

    def _is_target(self, target: TargetModule) -> bool:
        if matches(self.exclude_modules, target.path):
            return False
        if self.target_modules == "all-linear":
            return target.kind == "linear"
        return matches(self.target_modules, target.path)

    def _scales_input(self, path: str) -> bool:
        if isinstance(self.feedforward_modules, str):
            return re.fullmatch(self.feedforward_modules, path) is not None
        # Unlike a target, a feedforward module may match in the middle of a name.
        return any(path.endswith(name) for name in self.feedforward_modules)


def parse_ia3(config: Mapping[str, Any]) -> Ia3Settings:
    """Read ``adapter_config.json``; raises ``AdapterRejected`` for what is not served exactly."""
    refuse_unknown_keys(config, NEUTRAL_KEYS | _USED_KEYS, _UNSERVED_KEYS)
    return Ia3Settings(
        target_modules=names(config.get("target_modules"), "target_modules"),
        exclude_modules=names(config.get("exclude_modules") or (), "exclude_modules"),
        feedforward_modules=names(config.get("feedforward_modules"), "feedforward_modules"),
        modules_to_save=saved_modules(config),
    )


def check_inputs(projections: Sequence[Projection], modules: Sequence[ModuleSpec]) -> None:
    """Refuse an input scale of one slice of a stacked matmul, whose slices share their input."""
    scaled = {module.path for module in modules if module.input_scale}
    for projection in projections:
        if len(projection.slices) == 1:
            continue
        for part in projection.slices:
            if part.path in scaled:
                raise AdapterRejected(
                    "unsupported_feature",
                    f"feedforward_modules scales the input of {part.path}, which is one matmul "
                    f"with {len(projection.slices) - 1} more here and cannot have an input of its "
                    "own; only o_proj, down_proj and lm_head can",
                )
