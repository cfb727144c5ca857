"""Backends under test, and poisoned memory so that a result left unwritten is seen."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.cpu_ops import core, lora_linear, nf4
from multiflora.kernels.ops import LoraFactors, LoraInput, Ops, Segment
from multiflora.kernels.staging import DirectStaging
from multiflora.kernels.triton_ops.accelerator import Accelerator
from multiflora.kernels.triton_ops.backend import TritonOps
from multiflora.kernels.triton_ops.interpreter import INTERPRETED

CPU = torch.device("cpu")


@pytest.fixture
def without_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU backend as it is where the core was not built."""
    for module in (core, lora_linear, nf4):
        monkeypatch.setattr(module, "load_core", lambda: None)


@pytest.fixture(params=["torch", "cpu", "cpu without its core", "triton"])
def ops(request: pytest.FixtureRequest) -> Any:
    """Every backend on the CPU; Triton by its interpreter."""
    if request.param == "triton":
        if not INTERPRETED:
            pytest.skip("kernels are compiled here; triton_ops/test_on_gpu.py runs them")
        return TritonOps(Accelerator.open(CPU))
    if request.param == "cpu without its core":
        request.getfixturevalue("without_core")
    return torch_ops if request.param == "torch" else cpu_ops


@pytest.fixture(scope="session")
def lora_input() -> Callable[..., LoraInput]:
    """Factors by slot and segments, as ``ops`` wants them."""

    def make(
        ops: Ops,
        table: Sequence[LoraFactors | None],
        segments: Sequence[Segment],
        *,
        widths: Sequence[int],
        num_rows: int,
    ) -> LoraInput:
        tables = ops.make_lora_tables([widths], CPU)
        for slot, factors in enumerate(table):
            tables.write(slot, {} if factors is None else {0: factors})
        plan = ops.plan_lora(segments, num_rows=num_rows, staging=DirectStaging(CPU))
        return LoraInput(tables.projection(0), plan)

    return make


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
