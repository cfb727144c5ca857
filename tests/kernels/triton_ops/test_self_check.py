"""The start-up check passes on right kernels and names the one that is wrong."""

import pytest
import torch

from multiflora.kernels.triton_ops import self_check
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps
from multiflora.kernels.triton_ops.interpreter import INTERPRETED
from multiflora.kernels.triton_ops.self_check import SelfCheckFailed, check

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter only")


@pytest.fixture
def ops() -> TritonOps:
    return TritonOps(Accelerator.open(torch.device("cpu")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_right_kernels_pass(ops: TritonOps, dtype: torch.dtype) -> None:
    results = check(ops, dtype)
    assert [result.name for result in results] == ["look-up", "nf4 matmul", "adapters", "attention"]
    assert all(result.passed for result in results)


def test_a_wrong_look_up_is_named(ops: TritonOps, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.linear

    def wrong(*arguments):
        y = right(*arguments)
        y[3, 5] += 0.01
        return y

    monkeypatch.setattr(ops, "linear", wrong)
    with pytest.raises(SelfCheckFailed, match=r"'look-up' differs by .* \(at most 0e\+00\)"):
        check(ops, torch.float16)


def test_nan_is_a_failure(ops: TritonOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_CHECKS", (("matmul", lambda *_: (float("nan"), 1e-2)),))
    with pytest.raises(SelfCheckFailed, match="'matmul' differs by nan"):
        check(ops, torch.float16)


def test_a_kernel_that_does_not_compile_is_named(
    ops: TritonOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("ptxas: out of registers")

    monkeypatch.setattr(ops, "linear", broken)
    with pytest.raises(SelfCheckFailed, match="'look-up' did not run: ptxas: out of registers"):
        check(ops, torch.float16)
