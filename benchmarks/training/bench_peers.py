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
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.shape import QWEN_0_5B
from multiflora.engine.training.example import Example
from multiflora.engine.transport import engine_environment

SIDES: Final = ("multiflora", "trl-decoded", "trl-decoded-unchecked", "trl")
RANK, ALPHA, RATE = 16, 32, 1e-4
# Log-normal lengths, as instructions have them: most short, a few long.
SHORTEST, LONGEST, MEDIAN, SPREAD = 12, 256, 60, 0.7


@dataclass(frozen=True, slots=True)
class Work:
    """What all sides do: ``warmup`` steps more than are measured."""

    base: Path
    shape: dict[str, Any]
    steps: int
    warmup: int
    rows_per_step: int

    def rows(self) -> list[Example]:
        """Random tokens; the first half of each row is its prompt."""
        numbers = random.Random(1)
        return [
            Example(
                tuple(numbers.randrange(2, self.shape["vocab_size"]) for _ in range(length)),
                (0.0,) * (length // 2) + (1.0,) * (length - length // 2),
                line,
            )
            for line, length in enumerate(self._lengths(numbers), start=1)
        ]

    def _lengths(self, numbers: random.Random) -> Iterator[int]:
        for _ in range((self.steps + self.warmup) * self.rows_per_step):
            length = MEDIAN * numbers.lognormvariate(0, SPREAD)
            yield round(min(LONGEST, max(SHORTEST, length)))


class Meter:
    """Seconds and losses of steps, and memory from the first step on."""

    def __init__(self) -> None:
        self._base_bytes = resident_bytes("VmRSS")
        # The kernel's own way to forget the peak of loading (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
        self._last = time.perf_counter()
        self._steps: list[tuple[float, float]] = []

    def step(self, loss: float) -> None:
        now = time.perf_counter()
        self._steps.append((now - self._last, loss))
        self._last = now

    def figures(self, work: Work) -> dict[str, Any]:
        """Speed of all but the warm-up."""
        peak = resident_bytes("VmHWM")
        rows = work.rows()[work.warmup * work.rows_per_step :]
        seconds = [seconds for seconds, _ in self._steps[work.warmup :]]
        return {
            "tokens_per_second": round(sum(len(row.ids) for row in rows) / sum(seconds), 1),
            "step_seconds": [round(value, 2) for value in seconds],
            "peak_mib": round(peak / 2**20),
            "peak_above_base_mib": round((peak - self._base_bytes) / 2**20),
            "losses": [loss for _, loss in self._steps],
        }


def resident_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def run_multiflora(work: Work) -> dict[str, Any]:
    import torch

    from multiflora.engine.config import BaseConfig
    from multiflora.engine.models.load import load_base
    from multiflora.engine.models.registry import load_model_config
    from multiflora.engine.models.rope import rope_tables
    from multiflora.engine.training.heap import keep_freed_memory
    from multiflora.engine.training.network import TrainingNetwork
    from multiflora.engine.training.quantum import StepTaken
    from multiflora.engine.training.run import TrainingRun
    from multiflora.engine.training.task_kind import make_task
    from multiflora.kernels.choose import choose_ops
    from multiflora.kernels.ops import RopeTable

    # As an engine does before its first job.
    keep_freed_memory()
    device, dtype = torch.device("cpu"), torch.float32
    config = load_model_config(work.base)
    ops = choose_ops("cpu", device, dtype)
    weights = load_base(
        work.base,
        config,
        BaseConfig(model=str(work.base)),
        ops=ops,
        dtype=dtype,
        device=device,
        cache_dir=None,
        progress=lambda stage, fraction: None,
    )
    rope = rope_tables(
        config.rope, head_dim=config.head_dim, max_len=LONGEST, max_position=config.max_position
    )
    network = TrainingNetwork(config, weights, ops, RopeTable(*rope))
    settings = our_settings(work)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(
            network, make_task(work.rows(), settings.method), settings, folder=Path(folder)
        )
        _save_start(run.factors.tensors(), work.base)
        meter = Meter()
        while not run.has_ended:
            event = run.run_quantum().event
            if isinstance(event, StepTaken):
                meter.step(event.metrics["loss"])
    return meter.figures(work)


def our_settings(work: Work) -> Any:
    from multiflora.engine.training.config import (
        BatchSettings,
        LoraSettings,
        OptimizerSettings,
        ScheduleSettings,
        TrainingSettings,
    )

    return TrainingSettings(
        lora=LoraSettings(rank=RANK, alpha=ALPHA),
        optimizer=OptimizerSettings(learning_rate=RATE),
        schedule=ScheduleSettings(kind="constant", warmup_steps=0),
        batch=BatchSettings(batch_size=work.rows_per_step, num_epochs=1, shuffle=False),
    )


def _save_start(tensors: dict[str, Any], base: Path) -> None:
    """All sides start with the same factors."""
    from safetensors.torch import save_file

    save_file(tensors, str(base / "start.safetensors"))


def run_trl(
    work: Work, *, is_decoded: bool = False, gradient_checkpointing: bool = True
) -> dict[str, Any]:
    import datasets
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        work.base, dtype=torch.float32, device_map="cpu"
    )
    if is_decoded:
        _decode(model)
    # Checkpoints with a quantization keep the dtype of their other tensors, whatever is asked for.
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    lora = {**our_settings(work).lora.adapter_config(""), "inference_mode": False}
    model = get_peft_model(model, LoraConfig(**lora))
    loaded: Any = set_peft_model_state_dict(model, load_file(work.base / "start.safetensors"))
    assert not loaded.unexpected_keys
    rows = work.rows()
    labels = [
        [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)]
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=work.rows_per_step,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                train_sampling_strategy="sequential",
                gradient_checkpointing=gradient_checkpointing,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
                max_length=None,
                dataloader_pin_memory=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=datasets.Dataset.from_dict(
                {"input_ids": [list(row.ids) for row in rows], "labels": labels}
            ),
            processing_class=transformers.AutoTokenizer.from_pretrained(work.base),
            callbacks=[_step_watch(meter := Meter())],
        )
        trainer.train()
    return meter.figures(work)


def _decode(model: Any) -> None:
    """Put a plain linear of equal weights in the place of each NF4 one."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            parent, _, child = name.rpartition(".")
            stored: Any = module.weight
            exact = dequantize_4bit(stored.data, stored.quant_state).float()
            has_bias = module.bias is not None
            plain = torch.nn.Linear(exact.shape[1], exact.shape[0], bias=has_bias, device="meta")
            plain.weight = torch.nn.Parameter(exact, requires_grad=False)
            if has_bias:
                plain.bias = torch.nn.Parameter(module.bias.float(), requires_grad=False)
            setattr(model.get_submodule(parent), child, plain)


def _step_watch(meter: Meter) -> Any:
    from transformers import TrainerCallback

    class StepWatch(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                meter.step(logs["loss"])

    return StepWatch()


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
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training.bench_peers", "--side", side]
    command += ["--work", json.dumps({**asdict(work), "base": str(work.base)})]
    environment = engine_environment() if side == "multiflora" else {**os.environ}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"{side} ended with {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


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
    if arguments.side:
        fields = json.loads(arguments.work)
        figures = _side(arguments.side)(Work(**{**fields, "base": Path(fields["base"])}))
        print(json.dumps(figures))
        return
    shape = {**QWEN_0_5B, "num_hidden_layers": arguments.layers}
    if arguments.smoke:
        shape |= {"vocab_size": 2_048, "hidden_size": 128, "intermediate_size": 256}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            write_nf4_base(Path(folder), shape),
            shape,
            steps=arguments.steps,
            warmup=1,
            rows_per_step=arguments.rows_per_step,
        )
        lengths = [len(row.ids) for row in work.rows()]
        record = {
            "base": shape,
            "arguments": {k: v for k, v in vars(arguments).items() if k not in ("side", "work")},
            "row_tokens": {"mean": round(statistics.mean(lengths), 1), "longest": max(lengths)},
        }
        name = "training-peers-smoke" if arguments.smoke else "training-peers"
        results: dict[str, dict[str, Any]] = {}
        path: Path | None = None
        for side in arguments.sides:
            results[side] = run_side(side, work, threads=arguments.threads)
            print(side, json.dumps(results[side]), flush=True)
            # After every side: the last may take longer than there is time.
            found = {"multiflora_over": compare(results), "sides": results}
            path = save(name, {**record, **found}, path=path)
    print(f"{json.dumps(compare(results), indent=2)}\nsaved {path}")


def _side(name: str) -> Callable[[Work], dict[str, Any]]:
    return {
        "multiflora": run_multiflora,
        "trl": run_trl,
        "trl-decoded": partial(run_trl, is_decoded=True),
        "trl-decoded-unchecked": partial(run_trl, is_decoded=True, gradient_checkpointing=False),
    }[name]


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
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
