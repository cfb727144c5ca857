"""What every benchmark shares: repeated timing, the facts of the machine, and JSON records."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "triton")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest run over fastest run."""
        return max(self.seconds) / min(self.seconds)


def interleave(runs: Mapping[str, Callable[[], None]], *, repeats: int) -> dict[str, Timing]:
    """Time all ``runs`` in turn, ``repeats`` times: a slow minute hits every one of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            print(f"  {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Processor, its matmul units, memory and accelerator: what a number means nothing without."""
    import psutil
    import torch

    cpu = _cpu_info()
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": cpu.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "vector_units": [
            flag
            for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile")
            if flag in cpu.get("flags", "").split()
        ],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": accelerator,
        "load_average_at_end": os.getloadavg()[0],
    }


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that was measured; ``-dirty`` if the tree differs from it."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=RESULTS,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip() or "unknown"


def save(name: str, record: Mapping[str, Any], *, path: Path | None = None) -> Path:
    """Write one record, with everything needed to repeat it, to ``results/<name>-<time>.json``.

    ``path`` is that of an earlier call, to write a longer record of the same run.
    """
    RESULTS.mkdir(exist_ok=True)
    path = path or RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    facts = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        **record,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")
    return path


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem
