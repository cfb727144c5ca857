"""PEFT's ``svd`` merge of two adapters in memory, run by the interpreter of PEFT's environment.

The one argument is JSON: of each module its ``shape``, ``[out, in]``, and the ``file`` of its
factors ``0.a``, ``0.b``, ``1.a`` and ``1.b``, [rank, in] and [out, rank].
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from ..peer_process import answer_questions


def load(shape: tuple[int, int], file: str) -> Any:
    """A model of that one linear, with both parents' factors loaded as adapters."""
    n, k = shape
    factors = load_file(file)
    rank = factors["0.a"].shape[0]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["linear"])
    base = nn.ModuleDict({"linear": nn.Linear(k, n, bias=False)})
    model: Any = get_peft_model(base, config, adapter_name="0")  # type: ignore[arg-type]
    model.add_adapter("1", config)
    linear = model.base_model.model["linear"]
    for name in ("0", "1"):
        linear.lora_A[name].weight.data.copy_(factors[f"{name}.a"])
        linear.lora_B[name].weight.data.copy_(factors[f"{name}.b"])
    return model


def merge(models: Mapping[str, Any], name: str) -> None:
    model = models[name]
    # Under a name that exists it would return without doing anything.
    if "merged" in model.peft_config:
        model.delete_adapter("merged")
    rank = model.peft_config["0"].r
    model.add_weighted_adapter(
        ["0", "1"], [0.5, 0.5], "merged", combination_type="svd", svd_rank=rank
    )


def main() -> None:
    given = json.loads(sys.argv[1])
    models = {name: load(one["shape"], one["file"]) for name, one in given.items()}
    answer_questions(lambda name: merge(models, name))


if __name__ == "__main__":
    main()
