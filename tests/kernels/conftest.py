"""Backends under test, and poisoned memory so that a result left unwritten is seen."""

from types import ModuleType

import pytest
import torch

from multiflora.kernels import cpu_ops, torch_ops


@pytest.fixture(params=[torch_ops, cpu_ops], ids=lambda module: module.NAME)
def ops(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.empty`` and friends return NaN for floating dtypes."""

    def poison(function):
        def filled(*args, **kwargs):
            result = function(*args, **kwargs)
            return result.fill_(float("nan")) if result.is_floating_point() else result

        return filled

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    return
