"""Adapters with more than LoRA on linears, made by PEFT, and what PEFT computes with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

# A checkpoint and its adapters by name.
Extras: TypeAlias = tuple[Path, dict[str, Path]]

# A base with every bias and a head of its own, and one with neither.
BASES: Mapping[str, dict[str, Any]] = {
    "biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8}
# By name: the config, with the class that it is of.
EXTRAS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LoraConfig", {**_LORA, "target_modules": LINEARS}),
    "dora": ("LoraConfig", {**_LORA, "use_dora": True, "target_modules": "all-linear"}),
    "dora-some": (
        "LoraConfig",
        {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": ["v_proj", "down_proj"]},
    ),
    "bias-all": ("LoraConfig", {**_LORA, "bias": "all", "target_modules": ["q_proj", "up_proj"]}),
    "bias-only": (
        "LoraConfig",
        {**_LORA, "bias": "lora_only", "target_modules": ["k_proj", "o_proj"]},
    ),
    "bias-dora": (
        "LoraConfig",
        {**_LORA, "bias": "all", "use_dora": True, "target_modules": ["k_proj", "down_proj"]},
    ),
    "lora-bias": ("LoraConfig", {**_LORA, "lora_bias": True, "target_modules": LINEARS}),
    "ia3": (
        "IA3Config",
        {
            "target_modules": ["k_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        },
    ),
    "ia3-most": (
        "IA3Config",
        {
            "target_modules": ["q_proj", "up_proj", "gate_proj", "o_proj", "lm_head"],
            "feedforward_modules": r".*(o_proj|lm_head)",
        },
    ),
    "head": ("LoraConfig", {**_LORA, "target_modules": ["q_proj", "lm_head"]}),
    "head-dora": ("LoraConfig", {**_LORA, "use_dora": True, "target_modules": ["lm_head"]}),
    "embedding-dora": (
        "LoraConfig",
        {**_LORA, "use_dora": True, "target_modules": ["embed_tokens", "up_proj"]},
    ),
    "embedding": ("LoraConfig", {**_LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    "head-embedding": (
        "LoraConfig",
        {**_LORA, "use_rslora": True, "target_modules": ["lm_head", "embed_tokens", "up_proj"]},
    ),
    "saved-head": (
        "LoraConfig",
        {**_LORA, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "saved-embedding": (
        "LoraConfig",
        {**_LORA, "target_modules": ["lm_head", "o_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "saved-both": (
        "LoraConfig",
        {
            **_LORA,
            "target_modules": ["down_proj"],
            "modules_to_save": ["lm_head", "embed_tokens"],
        },
    ),
    "saved-ia3": (
        "IA3Config",
        {
            "target_modules": ["v_proj"],
            "feedforward_modules": [],
            "modules_to_save": ["lm_head"],
        },
    ),
}


def save_extras(model: Path, root: Path) -> dict[str, Path]:
    """A PEFT folder for every entry of ``EXTRAS`` on the checkpoint in ``model``."""
    import peft

    folders = {}
    for seed, (name, (kind, settings)) in enumerate(EXTRAS.items()):
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
        peft_model = peft.get_peft_model(load(model), config)
        _train(peft_model, config, seed)
        folders[name] = root / name
        peft_model.save_pretrained(str(folders[name]))
    return folders


def load(model: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def _train(peft_model: Any, config: Any, seed: int) -> None:
    """Random values for whatever the config trains, large enough to change what the base says."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_A" in name or "lora_embedding_B" in name:
            parameter.data.copy_(0.1 * noise)
        elif "lora_B" in name or "lora_embedding_A" in name:
            parameter.data.copy_(0.2 * noise)
        elif "magnitude" in name or "ia3_l" in name or "modules_to_save" in name:
            parameter.data.mul_(1 + 0.2 * noise)
        elif name.endswith(".bias") and parameter.requires_grad:
            parameter.data.add_(0.2 * noise)


def save_biased(model: Path, into: Path) -> Path:
    """The checkpoint in ``model`` with biases other than zero."""
    loaded = load(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.named_parameters():
        if name.endswith(".bias"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    loaded.save_pretrained(into)
    return into
