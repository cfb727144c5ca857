"""The names under which Hugging Face's trainers log metrics to trackers."""

import math
from collections.abc import Mapping
from typing import Final

_VALIDATION: Final = "eval_"


def tracked_values(metrics: Mapping[str, float]) -> dict[str, float]:
    """TRL's ``loss`` as ``train/loss``, ``eval_loss`` as ``eval/loss``; ``epoch`` is training's.

    What is not finite is left out: no tracker draws it.
    """
    return {
        _tracked_name(name): float(value) for name, value in metrics.items() if math.isfinite(value)
    }


def _tracked_name(name: str) -> str:
    if name.startswith(_VALIDATION):
        return f"eval/{name.removeprefix(_VALIDATION)}"
    return f"train/{name}"
