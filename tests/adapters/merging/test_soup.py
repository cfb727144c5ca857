"""A soup is the mean of deltas, whatever the factors, and of checkpoints of one run only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.soup import cook
from multiflora.adapters.merging.write import REPORT_NAME

Q = "model.layers.0.self_attn.q_proj"
Write = Callable[..., Path]


@pytest.fixture
def checkpoints(write_adapter: Write) -> list[Path]:
    """Three steps of one run, each with its own ranks of B in another order and sign."""

    def step(number: int) -> Callable[[dict[str, torch.Tensor]], None]:
        def edit(tensors: dict[str, torch.Tensor]) -> None:
            generator = torch.Generator().manual_seed(number)
            order = torch.randperm(4, generator=generator)
            for name, tensor in tensors.items():
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
                moved = tensor[order] if "lora_A" in name else tensor[:, order]
                tensor.copy_(-moved)

        return edit

    settings: dict[str, Any] = {"base_model_name_or_path": "a/base", "task_type": "CAUSAL_LM"}
    return [write_adapter(f"checkpoint-{i}", edit=step(i), **settings) for i in (1, 2, 3)]


def mean_of(paths: list[Path], shares: list[float], module: str = Q) -> torch.Tensor:
    total = torch.zeros(())
    for path, share in zip(paths, shares, strict=True):
        with Parent(path) as parent:
            total = total + share * parent.delta(module).dense().double()
    return total


def dense(path: Path, module: str = Q) -> torch.Tensor:
    with Parent(path) as parent:
        return parent.delta(module).dense().double()


@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, [1 / 3, 1 / 3, 1 / 3]), ([2, 1, 1], [0.5, 0.25, 0.25]), ([1, 0, 0], [1, 0, 0])],
    ids=["uniform", "weighted", "one"],
)
def test_an_exact_soup_is_the_mean_of_deltas(
    checkpoints: list[Path],
    tmp_path: Path,
    error: Callable[[torch.Tensor, torch.Tensor], float],
    weights: list[float] | None,
    shares: list[float],
) -> None:
    out = tmp_path / "soup"
    cook(checkpoints, out, weights=weights, rank=RankPolicy())
    for module in (Q, "model.layers.1.mlp.down_proj"):
        assert error(dense(out, module), mean_of(checkpoints, shares, module)) < 1e-6


def test_by_default_the_ranks_of_the_run_are_kept_as_well_as_they_can(
    checkpoints: list[Path],
    tmp_path: Path,
    error: Callable[[torch.Tensor, torch.Tensor], float],
) -> None:
    out = tmp_path / "soup"
    report = cook(checkpoints, out)
    mean = mean_of(checkpoints, [1 / 3] * 3)
    values = torch.linalg.svdvals(mean).square()
    kept = float(values[:4].sum() / values.sum())
    assert report["modules"][Q]["rank"] == 4
    assert report["modules"][Q]["energy_kept"] == pytest.approx(kept, rel=1e-5)
    assert error(dense(out), mean) == pytest.approx((1 - kept) ** 0.5, rel=1e-3)
    assert (
        load_file(out / "adapter_model.safetensors").keys()
        == load_file(checkpoints[0] / "adapter_model.safetensors").keys()
    )
    assert json.loads((out / REPORT_NAME).read_text()) == report
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("a/base", "CAUSAL_LM")


def test_ranks_of_their_own_stay_module_by_module(write_adapter: Write, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "down_proj" in name:
                tensors[name] = (tensor[:2] if "lora_A" in name else tensor[:, :2]).contiguous()

    settings: dict[str, Any] = {"edit": cut, "rank_pattern": {"down_proj": 2}, "use_rslora": True}
    paths = [write_adapter(name, **settings) for name in ("one", "two")]
    report = cook(paths, tmp_path / "soup")
    ranks = {path.rpartition(".")[2]: module["rank"] for path, module in report["modules"].items()}
    assert ranks == {"q_proj": 4, "down_proj": 2}
    assert report["summary"]["energy_kept_min"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "another/base"}, "trained on 'a/base' and other on 'another"),
        ({"rank": 2}, r"\[64, 96\] of rank 4 in checkpoint-1 and \[64, 96\] of rank 2 in other"),
        ({"modules": ("q_proj",)}, "of rank 4 in checkpoint-1 and absent in other"),
        ({"use_dora": True}, "DoRA"),
    ],
    ids=["base", "rank", "modules", "kind"],
)
def test_what_is_not_of_one_run_is_refused(
    checkpoints: list[Path],
    write_adapter: Write,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    other = write_adapter("other", **{"base_model_name_or_path": "a/base", **changes})
    with pytest.raises(AdapterRejected, match=message):
        cook([checkpoints[0], other], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 weights are given for 3"),
        ([1, -1, 1], "needs positive numbers"),
        ([0, 0, 0], "needs positive numbers"),
        ([1, float("inf"), 1], "needs positive numbers"),
    ],
)
def test_weights_that_make_no_mean_are_refused(
    checkpoints: list[Path], tmp_path: Path, weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cook(checkpoints, tmp_path / "soup", weights=weights)


def test_one_checkpoint_is_no_soup(checkpoints: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        cook(checkpoints[:1], tmp_path / "soup")
    (tmp_path / "taken").mkdir()
    with pytest.raises(AdapterRejected, match="taken exists"):
        cook(checkpoints, tmp_path / "taken")
