"""Tiny random models, their tokenizer, and PEFT adapters of every kind, made once per run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Without a GPU the Triton kernels run in the interpreter. It is chosen where they are defined, so
# this comes before any of them is imported; Triton 3.10 changes the default of the second.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# Speed is measured in benchmarks; a slow machine must not fail a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if not torch.cuda.is_available():
    # Triton decides at its import whether kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

VOCAB_SIZE = 384
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.15,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 24, "head_dim": 64},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 64},
}
# Six adapters that between them use every served feature of PEFT's format.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-1": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "rank-3": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
    "rank-8-rslora": {
        "r": 8,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": r".*\.(q|k|v|o)_proj",
    },
    "rank-16-patterns": {
        "r": 16,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "rank_pattern": {"down_proj": 5, r"layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {"up_proj": 3, r"layers\.0\.self_attn\.q_proj": 9},
    },
    "rank-40-down": {"r": 40, "lora_alpha": 20, "target_modules": ["down_proj"]},
    "rank-4-layers": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["gate_proj", "up_proj", "o_proj"],
        "layers_to_transform": [0, 2],
    },
}


def build_model(family: str, **changes: Any) -> Any:
    """A tiny random transformers model in float32."""
    import transformers

    classes = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    name = classes[family]
    settings = {**SIZES, **FAMILIES[family], **changes}
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(sum(map(ord, family)))
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with a chat template, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_adapter(model: Any, folder: Path, settings: dict[str, Any], seed: int) -> None:
    """A PEFT adapter with random A and B, large enough to change what the base says."""
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values * (0.1 if "lora_A" in name else 0.2))
    peft_model.save_pretrained(str(folder))
    peft_model.unload()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``model_folder(family, **changes)``: a saved tiny float32 checkpoint with its tokenizer."""
    made: dict[str, Path] = {}

    def make(family: str, **changes: Any) -> Path:
        key = repr((family, changes))
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            build_model(family, **changes).save_pretrained(folder)
            save_tokenizer(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """``adapter_folders(family)``: a PEFT folder for every entry of ``ADAPTERS``."""
    made: dict[str, dict[str, Path]] = {}

    def make(family: str) -> dict[str, Path]:
        if family not in made:
            root = tmp_path_factory.mktemp(f"{family}-adapters")
            model = build_model(family)
            for seed, (name, settings) in enumerate(ADAPTERS.items()):
                save_adapter(model, root / name, settings, seed)
            made[family] = {name: root / name for name in ADAPTERS}
        return made[family]

    return make


@pytest.fixture(scope="session")
def component() -> Callable[[str], Path]:
    """``component("promtool")``: an outside program; the test is skipped where it is missing."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("MULTIFLORA_COMPONENTS", root / ".components"))

    def find(name: str) -> Path:
        places = f"{folder / 'usr' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        path = shutil.which(name, path=places)
        if path is None:
            pytest.skip(f"the component {name} is missing; make components brings it")
        return Path(path)

    return find


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one.

    For thousands of syncs whose time is the disk's and whose effect a living kernel hides.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
