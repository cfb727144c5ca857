"""Every GPU kernel beside its peers, and a whole decode step beside its byte roofline; one run.

Writes ``results/gpu-kernels-<device>.json``. ``--smoke`` runs tiny shapes in Triton's interpreter
on any machine: it proves that this script works and measures nothing.
"""

import argparse
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import save
from benchmarks.kernels import attention, decode_step, lora, matmul
from benchmarks.kernels.random_weights import LLAMA_8B
from benchmarks.kernels.timing import copy_bandwidth
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps
from multiflora.kernels.triton_ops.self_check import check

Section = Callable[[], Iterable[Any]]


def main() -> int:
    arguments = _parse()
    device = torch.device("cpu" if arguments.smoke else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench-gpu needs a CUDA device; --smoke only shows that it works", file=sys.stderr)
        return 2
    dtype = getattr(torch, arguments.dtype)
    record: dict[str, Any] = {"dtype": arguments.dtype, "smoke": arguments.smoke}
    failed = False
    path: Path | None = None
    started = time.perf_counter()
    for name, section in _sections(device, dtype, record, smoke=arguments.smoke).items():
        failed |= not _run(name, section, record)
        record["seconds"] = round(time.perf_counter() - started, 1)
        print(f"{record['seconds']:6.1f} s  {name}", file=sys.stderr, flush=True)
        if not arguments.smoke:
            # After every section: a machine that goes away takes no number with it.
            path = save(f"gpu-kernels-{_device_name(device)}", record, path=path)
    _print(record)
    print(f"saved {path}" if path else "smoke run: nothing measured, nothing saved")
    return int(failed)


def _run(name: str, section: Section, record: dict[str, Any]) -> bool:
    """Rows as they come, so that one that fails costs none before it."""
    rows: list[Any] = []
    record[name] = rows
    try:
        rows.extend(section())
    except Exception as error:
        traceback.print_exc()
        record[f"{name}_error"] = f"{type(error).__name__}: {error}"
        return False
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, interpreted, no result")
    return parser.parse_args()


def _device_name(device: torch.device) -> str:
    """``h100``, ``h200``, ``a100`` and so on."""
    if device.type != "cuda":
        return "none"
    name = torch.cuda.get_device_name(device).lower()
    found = re.search(r"[a-z]*\d{2,4}[a-z]?\b", name)
    return found.group() if found else re.sub(r"\W+", "-", name)


def _sections(
    device: torch.device, dtype: torch.dtype, record: dict[str, Any], *, smoke: bool
) -> dict[str, Section]:
    gemm = matmul.MatmulRun(
        shapes=((192, 256),) if smoke else matmul.LLAMA_8B_SHAPES + matmul.QWEN_7B_SHAPES,
        row_counts=(1, 5) if smoke else matmul.ROW_COUNTS,
        dtype=dtype,
        device=device,
    )
    adapters = lora.LoraRun(
        projections=(((64, 32), 256),) if smoke else lora.LLAMA_8B_PROJECTIONS,
        adapter_counts=(1, 2) if smoke else lora.ADAPTER_COUNTS,
        ranks=(8,) if smoke else lora.RANKS,
        row_counts=(4,) if smoke else lora.ROW_COUNTS,
        dtype=dtype,
        device=device,
    )
    heads = attention.AttentionRunSpec(
        cases=((2, 40),) if smoke else attention.CASES,
        num_heads=4 if smoke else 32,
        num_kv_heads=2 if smoke else 8,
        head_dim=32 if smoke else 128,
        dtype=dtype,
        device=device,
    )
    step = decode_step.StepRun(
        model=_tiny_model() if smoke else LLAMA_8B,
        context=20 if smoke else 1024,
        batches=(2,) if smoke else (1, 8, 32, 64, 128),
        adapter_counts=(2,) if smoke else (8, 32),
        batch_invariant=False,
        dtype=dtype,
        device=device,
        steps=1 if smoke else 30,
    )
    invariant = replace(step, batch_invariant=True, batches=step.batches[:3])

    def bandwidth() -> list[float]:
        record["copy_bytes_per_s"] = copy_bandwidth(
            device, num_bytes=(1 << 16 if smoke else 2 << 30)
        )
        return [round(record["copy_bytes_per_s"] / 1e9, 1)]

    return {
        "copy_gb_per_s": bandwidth,
        "self_check": lambda: map(asdict, check(TritonOps(Accelerator.open(device)), dtype)),
        "matmul_errors": lambda: [matmul.check(gemm)],
        "invariance_probe": lambda: [matmul.probe_invariance(gemm)] if not smoke else [],
        "decode_step": lambda: decode_step.measure(step, record["copy_bytes_per_s"]),
        "decode_step_batch_invariant": lambda: decode_step.measure(
            invariant, record["copy_bytes_per_s"]
        ),
        "lora": lambda: lora.measure(adapters),
        "attention": lambda: attention.measure(heads),
        "matmul": lambda: matmul.measure(gemm),
    }


def _tiny_model() -> Any:
    return replace(
        LLAMA_8B,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        max_position=64,
    )


def _print(record: dict[str, Any]) -> None:
    print(f"copy bandwidth {record['copy_gb_per_s']} GB/s")
    for row in _rows(record, "matmul"):
        cells = {name: cell["us"] for name, cell in row.items() if isinstance(cell, dict)}
        print(f"  ({row['n']}, {row['k']}) x {row['m']}: {cells}")
    for row in _rows(record, "lora"):
        cells = {name: cell["added_us"] for name, cell in row.items() if isinstance(cell, dict)}
        where = f"({row['n']}, {row['k']}) x {row['m']}, {row['adapters']} of rank {row['rank']}"
        print(f"  {where}: base {row['base_us']}, added {cells}")
    for row in (*_rows(record, "decode_step"), *_rows(record, "decode_step_batch_invariant")):
        print(
            f"  batch {row['batch']}, {row['adapters']} adapters: {row['step_ms']} ms, "
            f"{row['tokens_per_s']} tokens/s, {row['step_over_roofline']} x roofline"
            + (" (batch-invariant)" if row["batch_invariant"] else "")
        )


def _rows(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = record.get(name)
    return rows if isinstance(rows, list) else []


if __name__ == "__main__":
    sys.exit(main())
