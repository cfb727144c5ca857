"""The benchmark of the CPU kernels runs every section on small shapes."""

import sys

import pytest

from benchmarks.kernels import bench_cpu
from benchmarks.kernels.cpu_limits import CpuLimits
from multiflora.kernels.cpu_ops.core import load_core

pytestmark = pytest.mark.skipif(load_core() is None, reason="the core is not built here")


def test_a_smoke_run_measures_every_section_and_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_cpu", "--smoke"])
    monkeypatch.setattr(bench_cpu, "save", lambda *_: pytest.fail("a smoke run was saved"))
    bench_cpu.main()
    printed = capsys.readouterr().out
    assert printed.count("multiflora 1.0x") == len(bench_cpu.ROW_COUNTS)
    assert printed.count("x the time of their bytes") == len(bench_cpu.ADAPTER_COUNTS)
    assert "attention, 2 x 40" in printed


def test_shares_of_the_limits_follow_from_the_measured_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_cpu, "best_seconds", lambda run, repeats: 1e-3)
    limits = CpuLimits(flops_per_second=2 * 64 * 128 * 1000 * 4, read_bytes_per_second=4608e3)
    row = bench_cpu._matmul(64, 128, limits, repeats=1)[0]
    assert (row["m"], row["of_peak"]) == (1, 0.25)
    # Half a byte per code, and a float32 scale per 64 of them.
    assert row["of_bandwidth"] == pytest.approx((64 * 128 / 2 + 64 * 128 / 16) / 4608, abs=1e-3)
