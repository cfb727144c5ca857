"""The gated activation kernel against the plain backend."""

import pytest
import torch

from multiflora.kernels import torch_ops
from multiflora.kernels.triton_ops.activation import silu_mul


@pytest.mark.parametrize("shape", [(1, 8), (3, 1000), (5, 1536)], ids=str)
def test_silu_mul_equals_the_plain_backend(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up = (3 * torch.randn(shape[0], 2 * shape[1], generator=generator)).to(device, dtype)
    found = silu_mul(gate_up)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch_ops.silu_mul(gate_up), atol=1e-7, rtol=2 * unit)


def test_no_rows_are_served(device: torch.device) -> None:
    assert silu_mul(torch.zeros(0, 64, device=device)).shape == (0, 32)
