"""The pieces of the step profile; ``full`` runs it in small."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.kernels.cpu_limits import CpuLimits
from benchmarks.report.record import Record
from benchmarks.serving.bench_step_profile import FULL, Case, CoreProfile, least, main
from multiflora.engine.models.config import ModelConfig
from multiflora.kernels.cpu_ops.core import Core, load_core


def test_every_call_of_the_core_is_counted_and_changes_nothing() -> None:
    served = load_core()
    if served is None:
        pytest.skip("the core is not built here")
    core = Core.__new__(Core)
    core.__dict__.update(served.__dict__)
    profile = CoreProfile(core)
    x = torch.randn(3, 64)
    assert torch.equal(core.round(x), served.round(x))
    core.round(x)
    assert profile.calls == {"round": 2}
    assert profile.seconds["round"] > 0
    profile.clear()
    assert not profile.calls
    assert not profile.seconds


class Shape:
    """One projection of 64 x 128 in two slices, and a head of 1,000."""

    vocab_size, hidden_size = 1_000, 64

    class _Projection:
        in_features, out_features, slices = 64, 128, (1, 2)

    def projections(self) -> tuple[object, ...]:
        return (self._Projection(),)


def test_the_least_time_is_that_of_bytes_or_of_operations() -> None:
    model: ModelConfig = Shape()  # type: ignore[assignment]
    limits = CpuLimits(1e9, 1e6, bfloat16_flops_per_second=2e6)
    linear, head = 64 * 128, 64 * 1_000
    one = least(model, Case("", 1, 0), CpuLimits(1e12, 1e6))
    assert one == {"least_ms": round((linear * 0.5625 + 2 * head) / 1e3, 3), "bound": "bytes"}
    quantized = least(model, Case("", 1, 0, quantize_head=True), CpuLimits(1e12, 1e6))
    assert quantized["least_ms"] == round((linear + head) * 0.5625 / 1e3, 3)
    adapters = least(model, Case("", 2, 2), CpuLimits(1e12, 1e6))
    assert adapters["least_ms"] > one["least_ms"]
    prompt = least(model, Case("", 1, 0, prompt_tokens=50, new_tokens=1), limits)
    assert prompt == {"least_ms": round(2 * (50 * linear + head) / 2e3, 3), "bound": "operations"}


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in FULL}) == len(FULL)


@pytest.mark.full
def test_it_runs_on_the_demo(smoke_run: Callable[..., Record]) -> None:
    for case in smoke_run(main, "--smoke").figures["cases"]:
        assert case["step_ms"] > case["operations_ms"]["nf4_matmul"] > 0
        assert case["calls"]["attention"] >= 1
