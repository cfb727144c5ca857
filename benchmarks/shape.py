"""Random models in the shapes of real ones, and random adapters for them."""

from pathlib import Path
from typing import Any

QWEN_0_5B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4_096,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}

LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2_048,
    "intermediate_size": 8_192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4_096,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}


def build_base(folder: Path, shape: dict[str, Any], *, seed: int = 0) -> Path:
    """Save a random Qwen2 of ``shape`` in bfloat16; an existing folder is used as it is."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(**shape, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(str(folder))
    return folder


def build_adapters(base: Path, folder: Path, *, count: int, rank: int) -> dict[str, Path]:
    """Save ``count`` random adapters of ``rank`` on all linears of the model in ``base``."""
    import torch
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folders = {f"adapter-{index}": folder / f"adapter-{index}" for index in range(count)}
    if all((path / "adapter_config.json").exists() for path in folders.values()):
        return folders
    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with init_empty_weights():
        model = get_peft_model(
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)), settings
        )
    shapes = {name: value.shape for name, value in get_peft_model_state_dict(model).items()}
    for index, path in enumerate(folders.values()):
        generator = torch.Generator().manual_seed(index)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: (0.02 * torch.randn(shape, generator=generator)).bfloat16()
            for name, shape in shapes.items()
        }
        save_file(tensors, path / "adapter_model.safetensors")
        settings.save_pretrained(str(path))
    return folders
