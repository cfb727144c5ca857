"""The files of a Hugging Face model folder around its weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiflora.adapters import durable

# What says how text becomes tokens and answers end; copied as it is.
COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "LICENSE*",
)
CONFIG_NAME = "config.json"


def copy_text_files(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation config, durably."""
    found = {path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}
    for path in sorted(found):
        shutil.copyfile(path, target / path.name)
        durable.sync(target / path.name)


def write_config(
    source: Path, target: Path, *, dtype: str, quantization: Mapping[str, Any] | None
) -> None:
    """Write config.json of ``source`` with another dtype and quantization."""
    values = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    values.pop("quantization_config", None)
    # Releases of transformers differ in which of the two they write and read.
    for key in ("dtype", "torch_dtype"):
        if key in values or key == "dtype":
            values[key] = dtype
    if quantization is not None:
        values["quantization_config"] = dict(quantization)
    write_json(target / CONFIG_NAME, values)


def nf4_settings(source: Path, dtype: str) -> dict[str, Any]:
    """``quantization_config`` of a double-quantized NF4 checkpoint.

    What ``source`` leaves unquantized stays so, and the head always.
    """
    values = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    before = values.get("quantization_config") or {}
    skipped = before.get("llm_int8_skip_modules") or []
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted({*skipped, "lm_head"}),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.write(path, json.dumps(content, indent=2).encode() + b"\n")
