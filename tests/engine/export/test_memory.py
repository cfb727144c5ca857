"""The memory of an export, measured from outside: one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multiflora.adapters.merging.delta import Delta
from multiflora.adapters.merging.write import round_delta, write_adapter
from multiflora.engine.models.registry import load_model_config

MIB = 1 << 20
PEAK = """
import sys
from pathlib import Path
import torch
from multiflora.engine.export.export import ExportSettings, export_model
from multiflora.engine.models.named_folder import NamedFolder
from multiflora.kernels.quantize import double_quantize, encode

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

# Libraries, thread pools and quantization tables are no part of the export.
double_quantize(encode(torch.randn(1024, 1024)).absmax)
before = status("VmRSS")
model, adapter, out = (Path(argument) for argument in sys.argv[1:])
export_model(
    NamedFolder("base", model), NamedFolder("adapter", adapter), out,
    ExportSettings(verify=False), progress=lambda *_: None,
)
print(status("VmHWM") - before)
"""


@pytest.fixture
def large_adapter(large_model: Path, tmp_path: Path) -> Path:
    """Rank 16 on every linear of ``large_model``."""
    modules = {}
    for projection in load_model_config(large_model).projections():
        for part in projection.slices:
            delta = Delta(torch.randn(part.out_features, 16), torch.randn(16, part.in_features))
            modules[part.path] = round_delta(delta.scaled(1e-3), torch.bfloat16)
    write_adapter(tmp_path / "adapter", modules, base_name="large")
    return tmp_path / "adapter"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_peak_is_a_few_tensors_whatever_the_model(
    large_model: Path, large_adapter: Path, tmp_path: Path
) -> None:
    # malloc keeps freed pieces by default; this makes large ones count only while they are used.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(large_model), str(large_adapter), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, shard = int(output.stdout), (out / "model.safetensors").stat().st_size
    # The largest linear has 4 Mi weights; what decodes and measures it takes six float32 copies.
    assert peak < 6 * 16 * MIB < 0.7 * shard
