"""What training frees stays in the process while it trains, and goes back after it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import ctypes, resource, sys
from multiflora.engine.training.heap import keep_freed_memory, return_freed_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        block = bytearray(64 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

keep_freed_memory()
first, later, kept = faults(1), faults(4), resident()
return_freed_memory()
print(first, later, kept, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_freed_block_is_used_again_and_returned_at_the_end() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT
    )
    first, later, kept, returned = map(int, result.stdout.split())
    assert first > 16_000  # 64 MiB in pages of 4 KiB
    assert later < first / 10
    assert returned < kept - (60 << 10)
