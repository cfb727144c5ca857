"""Grows the whole demo: tokenizer, base, NF4 checkpoint, adapters, scores.

`python -m demo.grow` from the repository root does it all; a killed run goes on where it stopped.
"""

import argparse
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from .clock import read_seconds, record_seconds
from .quantize import read_base, write_base
from .recipe import ADAPTERS, BaseRecipe
from .score import AdapterScore, TaskScore, check_training_text, score_adapters, score_base
from .tokenizer import train_tokenizer
from .train_adapters import train_adapter
from .train_base import train_base

logger = logging.getLogger(__name__)

COMMAND = "python -m demo.grow"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not arguments.score_only:
        _grow_base(arguments.work, arguments.output)
        _grow_adapters(arguments.work, arguments.output)
    _score(arguments.work, arguments.output, arguments.threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("engine/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="for checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="score what is in --output")
    return parser.parse_args()


def _grow_base(work: Path, output: Path) -> None:
    recipe = BaseRecipe()
    tokenizer = train_tokenizer(recipe.seed)
    trained = train_base(tokenizer, recipe, work)
    write_base(trained, tokenizer, output / "base")


def _grow_adapters(work: Path, output: Path) -> None:
    base = read_base(output / "base")
    tokenizer = _tokenizer(output)
    for recipe in ADAPTERS:
        seconds = train_adapter(base, tokenizer, recipe, output / "adapters" / recipe.name)
        record_seconds(work, recipe.name, seconds)


def _score(work: Path, output: Path, threads: int) -> None:
    base = read_base(output / "base")
    tokenizer = _tokenizer(output)
    record = {
        "command": COMMAND,
        "decoding": "greedy, float32, batches of 128, weights as shipped (NF4, adapters bfloat16)",
        "versions": {package: version(package) for package in PACKAGES},
        "machine": _machine(threads),
        "training_seconds": read_seconds(work) or _earlier_seconds(output),
        "num_parameters": sum(parameter.numel() for parameter in base.parameters()),
        "adapters": _plain(score_adapters(base, tokenizer, output / "adapters")),
        "base_skills": _plain(score_base(base, tokenizer)),
        "training_text": asdict(check_training_text()),
    }
    (output / "scores.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("wrote %s", output / "scores.json")


def _tokenizer(output: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(output / "base")


def _plain(scores: Mapping[str, AdapterScore | TaskScore]) -> dict[str, object]:
    return {name: asdict(score) for name, score in scores.items()}


def _earlier_seconds(output: Path) -> dict[str, float]:
    """Return the times in the last scores; scoring alone must not lose them."""
    return json.loads((output / "scores.json").read_text())["training_seconds"]


def _machine(threads: int) -> dict[str, object]:
    return {
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
