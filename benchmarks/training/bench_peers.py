"""Supervised training beside TRL and PEFT: the same NF4 base, rows, order, factors and rates.

A random model in the shape of Qwen2.5-0.5B with fewer layers, written once as bitsandbytes' NF4.
Rows are short and ragged, and half of each is learned. Every side runs in a process of its own with
its own defaults but float32, which is the fastest that processors without bf16 units have. Speed
counts real tokens, no padding; memory is the peak of resident memory while training, and what of it
lies above the loaded base. Losses of both sides are compared step by step.

``trl`` is SFTTrainer with its defaults. bitsandbytes' float32 NF4 is slow on CPUs: two more sides
train on the same weights, decoded to plain float32 linears of four bytes a weight: with TRL's
default checkpointing, and without any.

    python -m benchmarks.training.bench_peers [--layers 6] [--steps 4] [--rows-per-step 16]
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.peer_environment import PeerMissing, peer_python
from benchmarks.peer_process import PeerProcess
from benchmarks.shape import QWEN_0_5B
from multiflora.engine.training.config import LoraSettings
from multiflora.engine.transport import engine_environment

from .ragged_rows import Work

# What TRL is told, by side.
TRL_SIDES: Final = {
    "trl": {"is_decoded": False, "gradient_checkpointing": True},
    "trl-decoded": {"is_decoded": True, "gradient_checkpointing": True},
    "trl-decoded-unchecked": {"is_decoded": True, "gradient_checkpointing": False},
}
SIDES: Final = ("multiflora", "trl-decoded", "trl-decoded-unchecked", "trl")
LORA: Final = LoraSettings(rank=16, alpha=32)


def write_nf4_base(folder: Path, shape: dict[str, Any]) -> Path:
    """A random Qwen2 of ``shape`` whose linears are bitsandbytes' NF4, as it is published."""
    import torch
    import transformers
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**shape, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    dense = folder / "dense"
    transformers.Qwen2ForCausalLM(config).bfloat16().save_pretrained(str(dense))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    model: Any = transformers.Qwen2ForCausalLM.from_pretrained(
        dense, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
    )
    base = folder / "nf4"
    model.save_pretrained(str(base))
    # Rows are tokens already; TRL wants a tokenizer nevertheless, for its padding.
    demo = Path(__file__).resolve().parents[2] / "engine" / "demo" / "base"
    PreTrainedTokenizerFast.from_pretrained(demo).save_pretrained(str(base))
    return base


def run_side(side: str, work: Work, *, threads: int) -> dict[str, Any]:
    """One side in a process of its own, and the versions of its environment.

    Raises ``PeerMissing``, and ``RuntimeError`` if it fails.
    """
    asked: list[Any] = [work.fields()]
    if side == "multiflora":
        python, module = Path(sys.executable), "benchmarks.training.our_side"
        environment = engine_environment()
    else:
        python, module = peer_python("trl"), "benchmarks.training.trl_side"
        environment = {}
        asked += TRL_SIDES[side].values()
    environment |= {"OMP_NUM_THREADS": str(threads)}
    with PeerProcess(python, module, environment=environment) as process:
        return {**process.ask(*asked), "versions": process.versions}


def compare(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each peer beside multiflora; losses as the largest relative difference of any step."""
    ours = results.get("multiflora")
    if ours is None:
        return {}
    return {
        name: {
            "speed": round(ours["tokens_per_second"] / peer["tokens_per_second"], 2),
            "memory_above_base": round(
                ours["peak_above_base_mib"] / peer["peak_above_base_mib"], 2
            ),
            "largest_loss_difference": loss_difference(ours["losses"], peer["losses"]),
        }
        for name, peer in results.items()
        if peer is not ours
    }


def loss_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    arguments = _arguments()
    shape = {**QWEN_0_5B, "num_hidden_layers": arguments.layers}
    if arguments.smoke:
        shape |= {"vocab_size": 2_048, "hidden_size": 128, "intermediate_size": 256}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            write_nf4_base(Path(folder), shape),
            shape,
            LORA.adapter_config(""),
            steps=arguments.steps,
            warmup=1,
            rows_per_step=arguments.rows_per_step,
        )
        measure(work, arguments)


def measure(work: Work, arguments: argparse.Namespace) -> None:
    """All sides that are here, one after the other, into one record."""
    lengths = [len(row.ids) for row in work.rows()]
    record: dict[str, Any] = {
        "base": work.shape,
        "arguments": vars(arguments),
        "row_tokens": {"mean": round(statistics.mean(lengths), 1), "longest": max(lengths)},
        "skipped": {},
        "sides": {},
        "multiflora_over": {},
    }
    name = "training-peers-smoke" if arguments.smoke else "training-peers"
    path: Path | None = None
    for side in arguments.sides:
        try:
            found = run_side(side, work, threads=arguments.threads)
        except PeerMissing as error:
            record["skipped"][side] = str(error)
            print(f"{side} is skipped: {error}", flush=True)
        else:
            versions = found.pop("versions")
            if side in TRL_SIDES:
                record["peer_versions"] = versions
            record["sides"][side] = found
            record["multiflora_over"] = compare(record["sides"])
            print(side, json.dumps(found), flush=True)
        # After every side: the last may take longer than there is time.
        path = save(name, record, path=path)
    print(f"{json.dumps(compare(record['sides']), indent=2)}\nsaved {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--smoke", action="store_true", help="a tiny base, to see that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
