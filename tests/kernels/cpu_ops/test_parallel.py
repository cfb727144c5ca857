"""Sharing out a loop: every output once, whoever else computes, with however many threads."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from multiflora.kernels import cpu_ops
from multiflora.kernels.cpu_ops import build
from multiflora.kernels.cpu_ops.core import load_core
from multiflora.kernels.ops import DenseWeight, Weight
from multiflora.kernels.quantize import quantize
from multiflora.kernels.single_thread import compute_alone

pytestmark = pytest.mark.skipif(load_core() is None, reason="the core is not built here")

SHAPES = [(96, 256), (512, 512), (1_040, 128)]


@pytest.fixture(autouse=True)
def three_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def weights() -> list[Weight]:
    made: list[Weight] = []
    for seed, (n, k) in enumerate(SHAPES):
        matrix = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
        made += [DenseWeight(matrix), cpu_ops.pack_nf4(quantize(matrix), torch.float32)]
    return made


def test_callers_side_by_side_get_the_bits_of_a_caller_alone() -> None:
    matrices = weights()
    inputs = [torch.randn(rows, k) for rows in (1, 7, 40) for _, k in SHAPES for _ in range(2)]
    jobs = [(x, matrices[index % len(matrices)]) for index, x in enumerate(inputs)]
    torch.set_num_threads(1)
    expected = [cpu_ops.linear(x, weight, None, None) for x, weight in jobs]
    torch.set_num_threads(3)

    def run(start: int) -> bool:
        order = [(start + step) % len(jobs) for step in range(6 * len(jobs))]
        return all(torch.equal(cpu_ops.linear(*jobs[i], None, None), expected[i]) for i in order)

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(run, range(4))) == [True] * 4


def test_a_thread_that_computes_alone_is_served_beside_one_that_shares() -> None:
    (_, weight, *_), x = weights(), torch.randn(64, SHAPES[0][1])
    expected = cpu_ops.linear(x, weight, None, None)

    def run(alone: bool) -> bool:
        if alone:
            compute_alone()
        return all(torch.equal(cpu_ops.linear(x, weight, None, None), expected) for _ in range(50))

    with ThreadPoolExecutor(2) as callers:
        assert list(callers.map(run, (True, False))) == [True, True]


def test_many_short_loops_in_a_row_are_all_complete() -> None:
    x, weight = torch.ones(1, 512), DenseWeight(torch.ones(520, 512))
    for _ in range(3_000):
        assert cpu_ops.linear(x, weight, None, None).eq(512).all()


@pytest.fixture(scope="session")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parent / "sharing_stress.cpp"
    program = tmp_path_factory.mktemp("sharing") / "stress"
    flags = ("-O2", "-std=c++17", "-fopenmp", "-mavx2", f"-I{build.SOURCES}")
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("threads", [2, 3, 6])
def test_threads_that_are_held_up_anywhere_do_each_piece_once_and_of_their_own_loop(
    stress: Path, threads: int
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(
        [stress, "2"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("loops\n")
