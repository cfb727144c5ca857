"""The estimate against what is alive, storage by storage, while a run takes a step."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiflora.engine.models.config import ModelConfig
from multiflora.engine.training.config import (
    OPTIMIZERS,
    BatchSettings,
    LoraSettings,
    OptimizerKind,
    OptimizerSettings,
    PreferenceSettings,
    TrainingSettings,
)
from multiflora.engine.training.estimate import estimate_memory
from multiflora.engine.training.optimizer_size import moment_bytes

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    max_position=8192,
)


class PeakMemory(TorchDispatchMode):
    """Counts bytes of storages that were made inside and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: Any, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in given:
            return
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@pytest.mark.parametrize(
    ("family", "settings", "kernels"),
    [
        ("llama", {}, "cpu"),
        ("qwen3", {"dropout": 0.1}, "cpu"),
        ("qwen2", {}, "torch"),
        ("qwen2", {"use_dora": True}, "cpu"),
        ("llama", {"use_dora": True, "dropout": 0.1}, "torch"),
    ],
)
def test_estimate_is_an_upper_bound_and_a_close_one(
    family: str,
    settings: dict[str, Any],
    kernels: str,
    make_run: Callable[..., Any],
    make_examples: Callable[..., Any],
) -> None:
    lora = LoraSettings(**{"rank": 8, "alpha": 8, **settings})
    batch = BatchSettings(batch_size=8, max_steps=1, micro_batch_tokens=1600)
    rows = make_examples([200] * 8, first=1)
    with PeakMemory() as memory:
        run = make_run(rows, family=family, kernels=kernels, lora=lora, batch=batch)
        while not run.has_ended:
            run.run_quantum()
    model = run._network.config
    estimated = estimate_memory(
        model, TrainingSettings(lora=lora, batch=batch), dtype="float32", kernels=kernels
    )
    assert estimated.factors == run.factors.values.numel() * 4
    measured = memory.peak - estimated.host
    assert measured <= estimated.device_bytes <= 1.35 * measured, (measured, estimated)


def test_an_eight_billion_base_at_four_thousand_tokens_needs_about_three_gigabytes() -> None:
    settings = TrainingSettings(batch=BatchSettings(micro_batch_tokens=4096))
    memory = estimate_memory(LLAMA_8B, settings, dtype="bfloat16", kernels="triton")
    assert memory.factors == 4 * 41_943_040
    assert memory.boundaries == 33 * 4096 * 4096 * 2
    assert 2.5e9 < memory.device_bytes < 3.5e9


def test_adapting_only_high_layers_keeps_only_their_streams() -> None:
    model = replace(LLAMA_8B, num_layers=10)
    lora = LoraSettings(rank=2, layers_to_transform=(8, 9))
    settings = TrainingSettings(method=PreferenceSettings(), lora=lora)
    memory = estimate_memory(model, settings, dtype="float32", kernels="cpu", is_quantized=False)
    assert memory.boundaries == 3 * settings.batch.micro_batch_tokens * 4096 * 4


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_take_what_was_estimated(
    kind: OptimizerKind, make_run: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    """Large factors and little text: the optimizer's step is the peak."""
    lora, batch = LoraSettings(rank=256, alpha=8), BatchSettings(max_steps=1, micro_batch_tokens=8)
    optimizer = OptimizerSettings(kind=kind)
    with PeakMemory() as memory:
        run = make_run(make_examples([8]), lora=lora, batch=batch, optimizer=optimizer)
        while run.state.step < 1:
            run.run_quantum()
        peak = memory.peak
    settings = TrainingSettings(lora=lora, batch=batch, optimizer=optimizer)
    model = run._network.config
    estimated = estimate_memory(model, settings, dtype="float32", kernels="cpu")
    # Pages of a host's own memory count with it; no checkpoint is written here.
    paged = estimated.host - estimated.factors - moment_bytes(optimizer, estimated.factors // 4)
    needed = estimated.device_bytes + paged
    assert (paged > 0) == optimizer.is_paged
    assert peak <= needed <= 1.35 * peak, (peak, estimated)
