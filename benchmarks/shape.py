"""Random models in the shapes of real ones, and random adapters for them."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from multiflora.engine.models.config import ModelConfig

_NF4: Final = {
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "llm_int8_skip_modules": ["lm_head"],
}

SMALL: dict[str, Any] = {
    "vocab_size": 4_096,
    "hidden_size": 512,
    "intermediate_size": 1_408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4_096,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}

# The linears of a layer, as adapters name them.
ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

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

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2_048,
    "intermediate_size": 5_632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2_048,
    "tie_word_embeddings": False,
}

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "tie_word_embeddings": False,
}


def build_base(
    folder: Path,
    shape: dict[str, Any],
    *,
    seed: int = 0,
    family: Literal["qwen2", "llama"] = "qwen2",
) -> Path:
    """Save a random model of ``shape`` in bfloat16; an existing folder is used as it is."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **shape, **special)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(str(folder))
    return folder


def build_nf4_base(folder: Path, shape: dict[str, Any], *, seed: int = 0) -> Path:
    """Save a random Llama of ``shape`` whose linears are NF4 already, a file per layer.

    Nothing is quantized: codes and scales are drawn, so that 8B parameters take seconds.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, **_NF4}
    config.quantization_config = quantization  # pyright: ignore[reportAttributeAccessIssue]
    config.save_pretrained(str(folder))
    generator = torch.Generator().manual_seed(seed)
    places: dict[str, str] = {}
    for number, tensors in enumerate(_llama_files(shape, generator)):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, str(folder / name), metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _llama_files(shape: dict[str, Any], generator: Any) -> Iterator[dict[str, Any]]:
    """The tensors of each file: what is dense, then a layer at a time."""
    import torch

    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv_size = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    dense = {"model.norm.weight": ones}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name.startswith("model") or not shape["tie_word_embeddings"]:
            drawn = torch.randn(shape["vocab_size"], hidden, generator=generator)
            dense[name] = drawn.mul_(0.02).bfloat16()
    yield dense
    sizes = {"self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
    sizes |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (kv_size, hidden))
    sizes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, hidden))
    sizes["mlp.down_proj"] = (hidden, inner)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors = {
            f"{prefix}.input_layernorm.weight": ones.clone(),
            f"{prefix}.post_attention_layernorm.weight": ones.clone(),
        }
        for name, size in sizes.items():
            tensors |= _random_nf4(f"{prefix}.{name}.weight", *size, generator)
        yield tensors


def _random_nf4(name: str, out: int, into: int, generator: Any) -> dict[str, Any]:
    """Weights with a standard deviation of about 0.02."""
    import torch

    from multiflora.engine.models.bnb_format import STATE_PREFIX
    from multiflora.kernels.nf4 import BLOCK_SIZE, CODEBOOK

    state = {"quant_type": "nf4", "blocksize": BLOCK_SIZE, "dtype": "bfloat16"}
    text = json.dumps({**state, "shape": [out, into]}).encode()
    codes = torch.randint(0, 256, (out * into // 2, 1), dtype=torch.uint8, generator=generator)
    return {
        name: codes,
        f"{name}.absmax": 0.03 + 0.01 * torch.rand(out * into // BLOCK_SIZE, generator=generator),
        f"{name}.quant_map": torch.tensor(CODEBOOK),
        f"{name}.{STATE_PREFIX}nf4": torch.tensor(list(text), dtype=torch.uint8),
    }


def build_adapters(
    base: Path, folder: Path, *, count: int, rank: int, spread: float = 0.02
) -> dict[str, Path]:
    """Save ``count`` random adapters of ``rank`` on all linears of the model in ``base``.

    ``spread`` is the standard deviation of both factors.
    """
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
            name: (spread * torch.randn(shape, generator=generator)).bfloat16()
            for name, shape in shapes.items()
        }
        save_file(tensors, path / "adapter_model.safetensors")
        settings.save_pretrained(str(path))
    return folders


def publish_versions(
    data: Path, model: "ModelConfig", *, ranks: Sequence[int], modules: tuple[str, ...], seed: int
) -> list[str]:
    """Store a random version of each rank without a check, in ``data``; returns their digests."""
    import torch
    from safetensors.torch import save_file

    from multiflora.adapters.folder import AdapterFolder
    from multiflora.adapters.store import AdapterStore

    store = AdapterStore(data)
    targets = [part for p in model.projections() for part in p.slices]
    touched = [target for target in targets if target.path.endswith(modules)]
    digests = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for index, rank in enumerate(ranks):
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
            config["target_modules"] = list(modules)
            (folder / "adapter_config.json").write_text(json.dumps(config))
            generator = torch.Generator().manual_seed(seed + index)
            tensors = {}
            for target in touched:
                for name, shape in (
                    ("lora_A", (rank, target.in_features)),
                    ("lora_B", (target.out_features, rank)),
                ):
                    values = 0.1 * torch.randn(shape, generator=generator)
                    tensors[f"base_model.model.{target.path}.{name}.weight"] = values.bfloat16()
            save_file(tensors, folder / "adapter_model.safetensors")
            digest = hashlib.sha256(f"{seed} {index}".encode()).hexdigest()
            store.put_copy(digest, AdapterFolder(folder))
            digests.append(digest)
    return digests
