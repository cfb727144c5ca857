"""What an adapter has beside LoRA on the decoder's linears, in names that the registry stores."""

from collections.abc import Collection, Sequence
from typing import Final

from .module_spec import ModuleSpec

# Why a weighted sum of deltas cannot express the feature.
_UNBLENDABLE: Final = {
    "dora": "DoRA scales the base's outputs",
    "ia3": "(IA)^3 scales inputs and outputs",
    "saved_module": "it replaces a whole module of the base (modules_to_save)",
}


def features_of(modules: Sequence[ModuleSpec]) -> tuple[str, ...]:
    """``bias``, ``dora``, ``embedding``, ``head``, ``ia3``, ``saved_module``; sorted."""
    found: set[str] = set()
    for module in modules:
        for feature, is_used in (
            ("bias", module.bias or module.lora_bias),
            ("dora", module.magnitude),
            ("ia3", module.input_scale or module.output_scale),
            ("saved_module", module.weight),
            ("head", module.path == "lm_head"),
            ("embedding", module.path.endswith("embed_tokens")),
        ):
            if is_used:
                found.add(feature)
    return tuple(sorted(found))


def why_unblendable(features: Collection[str]) -> str | None:
    """Why a version with these features takes part in no blend; None if it can."""
    reasons = (reason for feature, reason in _UNBLENDABLE.items() if feature in features)
    return next(reasons, None)
