"""What ptxas makes of the attention and element-wise kernels, for GPUs that are not here.

Ceilings are a little above what Triton 3.6 and 3.7 gave: they tell when a change costs registers or
shared memory, and so programs in flight. They say nothing about time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Registers of a thread and shared memory of a program, by kernel.
CEILINGS = {
    "decode": (200, 40_000),
    "decode-whole": (208, 40_000),
    "decode-fp16": (200, 40_000),
    "decode-64": (112, 24_000),
    "decode-80": (168, 40_000),
    "decode-256": (168, 80_000),
    "prefill": (232, 52_000),
    "prefill-invariant": (200, 40_000),
    "prefill-fp16": (144, 52_000),
    "prefill-64": (184, 50_000),
    "prefill-80": (144, 52_000),
    "prefill-256": (208, 90_000),
    "merge": (64, 4_000),
    "rms_norm": (40, 1_000),
    "silu_mul": (40, 1_000),
    "rotate_and_cache": (48, 4_000),
}
Compiled = list[tuple[str, int, dict[str, Any]]]


@pytest.fixture(scope="module")
def kernels() -> Compiled:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = HERE / "attention_variants.py"
    child = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_every_kernel_compiles_for_every_generation(kernels: Compiled) -> None:
    assert {name for name, _, _ in kernels} == set(CEILINGS)
    assert {arch for name, arch, _ in kernels if name == "decode"} == {80, 89, 90}


def test_nothing_spills(kernels: Compiled) -> None:
    for name, arch, kernel in kernels:
        assert not kernel["stack_bytes"], (name, arch)
        assert not {"LDL", "STL"} & set(kernel["instructions"]), (name, arch)


def test_registers_and_shared_memory_stay_under_their_ceilings(kernels: Compiled) -> None:
    for name, arch, kernel in kernels:
        registers, shared_bytes = CEILINGS[name]
        assert kernel["registers"] <= registers, (name, arch)
        assert kernel["shared_bytes"] <= shared_bytes, (name, arch)


def test_attention_runs_on_tensor_cores_and_streams_its_pages(kernels: Compiled) -> None:
    for name, arch, kernel in kernels:
        if name.startswith(("decode", "prefill")):
            found = set(kernel["instructions"])
            assert {"HMMA", "HGMMA"} & found, (name, arch)
            assert "LDGSTS" in found, (name, arch)


def test_decode_and_invariant_prefill_use_the_same_tensor_core_instructions(
    kernels: Compiled,
) -> None:
    for arch in (80, 89, 90):
        counts = {
            name: kernel["instructions"].get("HMMA")
            for name, found, kernel in kernels
            if found == arch and name in {"decode", "decode-whole", "prefill-invariant"}
        }
        assert len(set(counts.values())) == 1, counts
