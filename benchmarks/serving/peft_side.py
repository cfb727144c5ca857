"""transformers + PEFT + bitsandbytes, run by the interpreter that PEFT is installed for.

All adapters are loaded, and ``adapter_names`` says for each row of a batch whose it is. The one
argument is JSON: ``base``, ``adapters`` (folders by name), ``dtype``, ``prompts`` (token ids, all
of one length) and ``device``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ..peer_process import answer_questions


def load(base: str, adapters: Mapping[str, str], dtype: str, device: str) -> Any:
    compute = getattr(torch, dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=compute, device_map=device
    )
    (first, folder), *others = adapters.items()
    loaded = PeftModel.from_pretrained(model, folder, adapter_name=first)
    for name, folder in others:
        loaded.load_adapter(folder, adapter_name=name)
    return loaded.eval()


def generate(
    model: Any, prompts: Sequence[Sequence[int]], names: Sequence[str], num_tokens: int
) -> None:
    """Decode greedily, row ``i`` with ``names[i]``."""
    ids = torch.tensor(prompts[: len(names)], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=list(names),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
        )
    assert out.shape == (len(names), len(prompts[0]) + num_tokens)


def main() -> None:
    given = json.loads(sys.argv[1])
    model = load(given["base"], given["adapters"], given["dtype"], given["device"])
    answer_questions(partial(generate, model, given["prompts"]))


if __name__ == "__main__":
    main()
