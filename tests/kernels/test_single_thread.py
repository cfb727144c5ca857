"""Threads that compute by themselves, beside others that do not."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from multiflora.kernels.single_thread import compute_alone, computing_alone

# How many threads a process gets by computing in a second one.
PROGRAM = """
import sys, threading
import psutil, torch
from multiflora.kernels.single_thread import compute_alone

def compute():
    if sys.argv[1] == "alone":
        compute_alone()
    (big * 2).sum(), big @ big
    counts.append(psutil.Process().num_threads())

torch.set_num_threads(4)
big, counts = torch.ones(1000, 1000), []
(big * 2).sum(), big @ big
before = psutil.Process().num_threads()
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(counts[0] - before, torch.get_num_threads())
"""


@pytest.mark.parametrize(("mode", "threads"), [("alone", 1), ("shared", 4)])
def test_a_thread_that_computes_alone_gets_no_workers(mode: str, threads: int) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [str(threads), "4"]


def test_it_is_one_thread_only_that_changes() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=compute_alone) as lane:
        assert lane.submit(torch.get_num_threads).result() == 1
        x = torch.randn(300, 300)
        torch.testing.assert_close(lane.submit(torch.mm, x, x).result(), x @ x)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_thread_that_computed_alone_for_a_while_has_its_workers_again(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with computing_alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
