"""The same random base and adapters in the forms that different servers read."""

import itertools
import json
import os
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.shape import build_adapters, build_base

END: Final = "<|endoftext|>"
RANK: Final = 16
# Deltas as large as the weights they change, so that greedy answers differ at once.
SPREAD: Final = 0.1


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """A bfloat16 base with a tokenizer, and PEFT folders by the names that clients use.

    ``gguf`` is where their conversions are kept.
    """

    base: Path
    adapters: dict[str, Path]
    gguf: Path

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.base / "config.json").read_text())

    @property
    def gguf_adapters(self) -> list[Path]:
        """In the order of ``adapters``."""
        return [self.gguf / f"{name}.gguf" for name in self.adapters]


def write_files(
    folder: Path, shape: dict[str, Any], *, family: Literal["qwen2", "llama"], num_adapters: int
) -> PeerFiles:
    """Write what is not there yet."""
    base = build_base(folder / "base", shape, family=family)
    if not (base / "tokenizer.json").exists():
        write_tokenizer(base, shape["vocab_size"])
    adapters = build_adapters(
        base, folder / "adapters", count=num_adapters, rank=RANK, spread=SPREAD
    )
    return PeerFiles(base, adapters, folder / "gguf")


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Save a byte-level BPE of exactly ``vocab_size`` tokens, nearly all of them ASCII words.

    Whatever random weights choose is text at once, so that servers stream every token by itself.
    Raises ``ValueError`` for a vocabulary that bytes and such words do not fit.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    num_merges = vocab_size - len(tokens)
    merges = list(itertools.islice(_merges(), max(0, num_merges)))
    if num_merges < 0 or len(merges) < num_merges:
        most = len(tokens) + sum(1 for _ in _merges())
        raise ValueError(f"vocab_size is {vocab_size}; it must be {len(tokens)} to {most}")
    tokens += [left + right for left, right in merges]
    made = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END).save_pretrained(
        str(folder)
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Words of two, then three, then four letters, each made of a shorter one and a letter."""
    words: list[str] = list(string.ascii_lowercase)
    for _ in range(3):
        pairs = list(itertools.product(words, string.ascii_lowercase))
        yield from pairs
        words = [word + letter for word, letter in pairs]


def write_gguf_base(files: PeerFiles, form: str, *, source: Path, quantize: Path) -> Path:
    """The base in ``form``, such as Q4_0, by llama.cpp's own converter and ``quantize``.

    Raises ``subprocess.CalledProcessError``.
    """
    plain, made = files.gguf / "base-bf16.gguf", files.gguf / f"base-{form}.gguf"
    files.gguf.mkdir(parents=True, exist_ok=True)
    if not plain.exists():
        _convert(source, "convert_hf_to_gguf.py", str(files.base), plain, outtype="bf16")
    if not made.exists():
        part = made.with_suffix(".part")
        _run([str(quantize), str(plain), str(part), form], cwd=files.gguf)
        part.rename(made)
    return made


def write_gguf_adapters(files: PeerFiles, *, source: Path) -> list[Path]:
    """All adapters in float16. Raises ``subprocess.CalledProcessError``."""
    files.gguf.mkdir(parents=True, exist_ok=True)
    for made, folder in zip(files.gguf_adapters, files.adapters.values(), strict=True):
        if not made.exists():
            arguments = (str(folder), "--base", str(files.base))
            _convert(source, "convert_lora_to_gguf.py", *arguments, made, outtype="f16")
    return files.gguf_adapters


# The converters look for a tokenizer of sentencepiece first, and tell others by a hash of what
# they make of a text, which they know of published models only. Prompts are token ids here.
_CONVERT: Final = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel._set_vocab_sentencepiece = TextModel._set_vocab_gpt2
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _convert(source: Path, script: str, *arguments: str | Path, outtype: str) -> None:
    *given, made = arguments
    part = Path(made).with_suffix(".part")
    command = [sys.executable, "-c", _CONVERT, str(source), str(source / script)]
    _run([*command, *map(str, given), "--outtype", outtype, "--outfile", str(part)], cwd=source)
    part.rename(made)


def _run(command: list[str], *, cwd: Path) -> None:
    subprocess.run(
        command,
        cwd=cwd,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
