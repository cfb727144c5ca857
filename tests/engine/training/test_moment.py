"""Moments are read and written by ranges, wherever they are kept."""

from typing import Any

import pytest
import torch

from multiflora.engine.training.config import OPTIMIZERS, OptimizerSettings
from multiflora.engine.training.moment import make_moments
from multiflora.engine.training.optimizer_size import BLOCK, moment_bytes

SIZE = 5 * BLOCK + 96
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_range_is_read_as_it_was_written(kind: Any, device: str) -> None:
    settings = OptimizerSettings(kind=kind)
    generator = torch.Generator().manual_seed(1)
    for moment in make_moments(settings, SIZE, torch.device(device)):
        assert not moment.read(0, SIZE).any()
        written = torch.rand(SIZE, generator=generator).to(device)
        for start, stop in ((0, 2 * BLOCK), (2 * BLOCK, SIZE)):
            values = moment.read(start, stop)
            assert values.device.type == device
            values.copy_(written[start:stop])
            moment.write(start, values)
        read = moment.read(0, SIZE)
        if settings.is_8bit:
            torch.testing.assert_close(read, written, rtol=0.1, atol=1e-3)
        else:
            assert torch.equal(read, written)
        assert torch.equal(moment.read(2 * BLOCK, 3 * BLOCK), read[2 * BLOCK : 3 * BLOCK])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_take_what_is_planned_where_it_is_planned(kind: Any, device: str) -> None:
    settings = OptimizerSettings(kind=kind)
    moments = make_moments(settings, SIZE, torch.device(device))
    tensors = [tensor for moment in moments for tensor in moment.tensors().values()]
    assert sum(tensor.nbytes for tensor in tensors) == moment_bytes(settings, SIZE)
    home = "cpu" if settings.is_paged else device
    assert {tensor.device.type for tensor in tensors} == {home}
    assert all(tensor.is_pinned() == (home != device) for tensor in tensors)


def test_8_bit_moments_are_a_quarter_as_large() -> None:
    sizes = {kind: moment_bytes(OptimizerSettings(kind=kind), 1 << 20) for kind in OPTIMIZERS}
    assert sizes["adamw"] == sizes["paged_adamw"] == 8 << 20
    assert sizes["adamw_8bit"] < 0.26 * sizes["adamw"]
