"""RMS norm kernels against the plain backend, at its rounding points."""

from typing import Any

import pytest
import torch
from torch import Tensor

from multiflora.kernels import torch_ops
from multiflora.kernels.triton_ops.norm import add_rms_norm, rms_norm

# One unit in the last place, for a sum taken in another order.
CLOSE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"atol": 1e-6, "rtol": 1e-6},
    torch.float16: {"atol": 1e-7, "rtol": 2**-10},
    torch.bfloat16: {"atol": 1e-7, "rtol": 2**-7},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", CLOSE, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 64), (3, 4, 80), (5, 1000), (2, 16384)], ids=str)
def test_rms_norm_equals_the_plain_backend(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x = random(*shape).to(device, dtype)
    weight = random(shape[-1], seed=1).to(device, dtype)
    found = rms_norm(x, weight, 1e-5)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch_ops.rms_norm(x, weight, 1e-5), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=["fp32", "fp16", "bf16"])
def test_add_rms_norm_normalizes_the_rounded_sum(dtype: torch.dtype, device: torch.device) -> None:
    x, residual = random(5, 100).to(device, dtype), random(5, 100, seed=1).to(device, dtype)
    weight = random(100, seed=2).to(device, dtype)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, rms_norm(total, weight, 1e-5))


def test_a_strided_input_and_no_rows_are_served(device: torch.device) -> None:
    x = random(4, 6, 32).to(device)[:, 1:3]
    weight = random(32, seed=1).to(device)
    expected = torch_ops.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, **CLOSE[torch.float32])
    assert rms_norm(x[:0], weight, 1e-5).shape == (0, 2, 32)


def test_a_row_keeps_its_bits_among_other_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = random(7, 192).to(device, dtype), random(192, seed=1).to(device, dtype)
    whole = rms_norm(x, weight, 1e-6)
    assert torch.equal(rms_norm(x[3:4], weight, 1e-6), whole[3:4])
    x[2] = float("nan")
    assert torch.equal(rms_norm(x, weight, 1e-6)[3], whole[3])
