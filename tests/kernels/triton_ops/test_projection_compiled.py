"""Machine code of the projection's kernels: no spills, tensor cores, and a budget per weight.

Counted in SASS for GPUs that need not be here; a number above its ceiling is a regression.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("projection_variants.py")
# Instructions of the streaming loop for each weight decoded. An H100 can issue 5.2 to 5.9 of them
# before the memory is no longer what limits it; at 32 and 64 rows arithmetic takes over anyway.
INSTRUCTIONS_PER_WEIGHT = {16: 4.6, 32: 5.2, 64: 6.4}
# Three programs of 168 registers fit a multiprocessor, two of 240.
REGISTERS = {16: 168, 32: 168, 64: 240}
SHARED_BYTES = {16: 40 << 10, 32: 64 << 10, 64: 52 << 10}
WEIGHTS_PER_THREAD = 128 * 64 / 128


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, int], dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = str(SCRIPT.parents[3])
    child = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return {(name, arch): kernel for name, arch, kernel in json.loads(child.stdout)}


def instructions_per_weight(kernel: dict[str, Any]) -> float:
    """Of the loop that permutes most for its length."""
    loops = [Counter(loop) for loop in kernel["loops"]]
    hottest = max(loops, key=lambda loop: loop["PRMT"] / loop.total())
    return hottest.total() / WEIGHTS_PER_THREAD


@pytest.mark.parametrize("arch", [80, 89, 90])
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_the_fused_matmul_stays_within_its_budget(kernels, rows: int, arch: int) -> None:
    kernel = kernels[f"nf4-matmul-{rows}", arch]
    found = instructions_per_weight(kernel)
    ceiling = INSTRUCTIONS_PER_WEIGHT[rows]
    assert found <= ceiling, f"{found:.2f} instructions a weight, the ceiling is {ceiling}"
    assert kernel["registers"] <= REGISTERS[rows]
    assert kernel["shared_bytes"] <= SHARED_BYTES[rows]


def test_no_kernel_spills(kernels) -> None:
    spilling = {
        name: kernel["stack_bytes"]
        for name, kernel in kernels.items()
        if kernel["stack_bytes"] and name[1] != 100
    }
    assert not spilling
    # The epilogue of Blackwell keeps a few addresses in local memory; its loop does not.
    assert kernels["nf4-matmul-16", 100]["stack_bytes"] <= 32


def test_every_product_runs_on_tensor_cores(kernels) -> None:
    for name, kernel in kernels.items():
        found = kernel["instructions"]
        has_product = "dequantize" not in name[0]
        assert bool(found.get("HMMA") or found.get("HGMMA")) == has_product, name


def test_small_tiles_share_one_instruction_family_so_that_rows_are_invariant(kernels) -> None:
    for arch in (80, 89, 90):
        for rows in (16, 32):
            found = kernels[f"nf4-matmul-{rows}", arch]["instructions"]
            assert found.get("HMMA")
            assert not found.get("HGMMA")
    assert kernels["nf4-matmul-64", 90]["instructions"].get("HGMMA")


def test_the_shrink_overlaps_the_matmul_from_hopper_on(kernels) -> None:
    for name in ("nf4-matmul-16", "lora-shrink"):
        assert kernels[name, 90]["instructions"].get("ACQBULK")
        assert not kernels[name, 80]["instructions"].get("ACQBULK")
    assert not kernels["nf4-matmul-16-base", 90]["instructions"].get("ACQBULK")


def test_nothing_adds_to_memory_in_an_order_left_to_chance(kernels) -> None:
    """Atomics count arrivals (ATOMG); none reduces floating-point numbers (RED)."""
    for name, kernel in kernels.items():
        assert not kernel["instructions"].get("RED"), name


def test_float16_costs_what_bfloat16_costs(kernels) -> None:
    half, brain = kernels["nf4-matmul-16-fp16", 90], kernels["nf4-matmul-16", 90]
    assert instructions_per_weight(half) == pytest.approx(instructions_per_weight(brain), rel=0.02)
