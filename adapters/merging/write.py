"""Deltas as an ordinary PEFT folder with scaling 1, whole or absent at every moment."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from .. import durable
from ..error import AdapterRejected
from ..folder import CONFIG_NAME, WEIGHTS_NAME
from ..peft_format import PREFIX
from ..tensor_file import write_tensors
from .delta import Delta, is_finite

REPORT_NAME: Final = "merge_report.json"
# By the words that users and reports write.
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """A delta as a file holds it: b [N, R] and a [R, K] in the file's dtype, R at least 1.

    ``rounding_error`` is the relative change of the product in the Frobenius norm.
    """

    b: Tensor
    a: Tensor
    rounding_error: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def round_delta(delta: Delta, dtype: torch.dtype) -> StoredDelta:
    """Bring the factors to ``dtype``. A zero delta becomes one rank of zeros.

    Raises ``AdapterRejected`` if a value does not fit, or is NaN.
    """
    if delta.rank == 0:
        n, k = delta.shape
        return StoredDelta(torch.zeros(n, 1, dtype=dtype), torch.zeros(1, k, dtype=dtype), 0.0)
    if dtype == torch.float16:
        delta = delta.balanced()
    b, a = delta.b.to(dtype), delta.a.to(dtype)
    if not (is_finite(b) and is_finite(a)):
        raise AdapterRejected(
            "not_finite", f"the result does not fit {dtype}; use smaller weights, or float32"
        )
    if dtype == torch.float32:
        return StoredDelta(b.contiguous(), a.contiguous(), 0.0)
    return StoredDelta(b.contiguous(), a.contiguous(), _rounding_error(delta, b, a))


def _rounding_error(delta: Delta, b: Tensor, a: Tensor) -> float:
    # b' a' - b a = (b' - b) a' + b (a' - a), which cancels nowhere.
    rounded_b, rounded_a = b.float(), a.float()
    error_b, error_a = rounded_b - delta.b, rounded_a - delta.a
    squared = (
        _inner(error_b.T @ error_b, rounded_a @ rounded_a.T)
        + 2 * _inner(error_b.T @ delta.b, rounded_a @ error_a.T)
        + _inner(outputs := delta.b.T @ delta.b, error_a @ error_a.T)
    )
    whole = _inner(outputs, delta.a @ delta.a.T)
    return math.sqrt(max(0.0, squared) / whole) if whole > 0 else 0.0


def _inner(left: Tensor, right: Tensor) -> float:
    return float((left.double() * right.double()).sum())


def write_adapter(
    out: Path,
    modules: Mapping[str, StoredDelta],
    *,
    base_name: str | None,
    task_type: str | None = "CAUSAL_LM",
    targets: Sequence[str] | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write the PEFT folder ``out``; ``report`` goes to ``merge_report.json`` beside the weights.

    ``targets`` are PEFT's ``target_modules``, by default all paths in full. Raises
    ``AdapterRejected`` if ``out`` exists, and ``OSError`` (such as a full disk); nothing is left
    then.
    """
    assert modules, "an adapter has at least one module"
    refuse_existing(out)
    config = _config(modules, base_name=base_name, task_type=task_type, targets=targets)
    try:
        with durable.new_folder(out) as staged:
            write_tensors(staged / WEIGHTS_NAME, _tensors(modules), {"format": "pt"})
            durable.write(staged / CONFIG_NAME, _json(config))
            if report is not None:
                durable.write(staged / REPORT_NAME, _json(report))
    except FileExistsError:
        # Made by somebody else meanwhile.
        refuse_existing(out)
        raise


def refuse_existing(out: Path) -> None:
    """Raise ``AdapterRejected`` if something is at ``out``."""
    if os.path.lexists(out):
        raise AdapterRejected(
            "output_exists", f"{out} exists; choose another folder, or remove it first"
        )


def _tensors(modules: Mapping[str, StoredDelta]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, stored in modules.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = stored.a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = stored.b
    return tensors


def _config(
    modules: Mapping[str, StoredDelta],
    *,
    base_name: str | None,
    task_type: str | None,
    targets: Sequence[str] | None,
) -> dict[str, Any]:
    ranks = {path: stored.rank for path, stored in modules.items()}
    common = max(Counter(ranks.values()).items(), key=lambda item: (item[1], item[0]))[0]
    # PEFT takes the first pattern that fits the end of a path: the longest path must come first.
    in_order = sorted(ranks, key=lambda path: (-len(path), path))
    is_mixed = len(set(ranks.values())) > 1
    pattern = {re.escape(path): ranks[path] for path in in_order} if is_mixed else {}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "target_modules": sorted(targets or ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
