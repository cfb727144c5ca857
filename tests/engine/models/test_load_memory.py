"""The host memory of a load, measured from outside: one process per load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
PEAK = """
import sys
from pathlib import Path
import torch
from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.kernels.quantize import double_quantize, encode
from multiflora.kernels import torch_ops

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

# Libraries, thread pools and quantization tables are no part of the load.
double_quantize(encode(torch.randn(1024, 1024)).absmax)
before = status("VmRSS")
folder, cache = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None
weights = load_base(
    folder, load_model_config(folder), BaseConfig(model="x"), ops=torch_ops,
    dtype=torch.bfloat16, device=torch.device("cpu"), cache_dir=cache,
    progress=lambda *_: None,
)
print(status("VmHWM") - before, weights.num_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("cached", [False, True], ids=["memory-only", "with-cache"])
def test_peak_is_the_quantized_model_and_one_projection(
    large_model: Path, tmp_path: Path, cached: bool
) -> None:
    cache = str(tmp_path / "cache") if cached else ""
    # malloc keeps freed pieces by default; this makes large ones count only while they are used.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(large_model), cache],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, resident = map(int, output.stdout.split())
    shard = (large_model / "model.safetensors").stat().st_size
    assert resident < 0.35 * shard
    assert peak < resident + 40 * MIB
    assert peak < 0.55 * shard
