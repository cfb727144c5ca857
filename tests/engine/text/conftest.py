"""Small tokenizers of the two kinds that the supported families use."""

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789 +-*/=() {}[]",
    "pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump!",
    "Grüße aus Köln, naïve café, 你好 世界, こんにちは, emoji 🙂🚀👩‍👩‍👧 and ¡olé!",
    "def main():\n    return [x for x in range(10)]\n\n\tprint('hello   world')",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]


class WriteFolder(Protocol):
    def __call__(self, tokenizer: Tokenizer, **config: Any) -> Path: ...


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Byte-level BPE, as Llama 3, Qwen and the demo base use it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """BPE over spaces written as U+2581 with byte fallback, as Llama 2 and Mistral use it."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*SPECIAL[:3], *bytes_])
    ascii_only = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(ascii_only, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


@pytest.fixture(params=["byte_level", "byte_fallback"])
def fast_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each kind in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Write a tokenizer folder with the given tokenizer_config.json."""

    def write(tokenizer: Tokenizer, **config: Any) -> Path:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        defaults = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**defaults, **config}))
        return tmp_path

    return write
