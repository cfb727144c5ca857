"""Parity with PEFT 0.21.2, on a model of its own that loads the same folders."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import Recipe

MakeParent = Callable[..., Path]
Measure = Callable[[Tensor, Tensor], float]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(20, 24, bias=False),
                "v_proj": nn.Linear(20, 12, bias=False),
            }
        )
        self.mlp = nn.ModuleDict({"down_proj": nn.Linear(32, 20, bias=False)})


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()])})


def by_peft(
    folders: Sequence[Path], weights: Sequence[float], kind: str, **settings: Any
) -> dict[str, Tensor]:
    """The dense change that PEFT's merge makes to every linear."""
    from peft import PeftModel

    assert version("peft") == "0.21.2"
    first, *others = folders
    model = PeftModel.from_pretrained(Base(), str(first), adapter_name=first.name)  # type: ignore[arg-type]
    for folder in others:
        model.load_adapter(str(folder), adapter_name=folder.name)
    names = [folder.name for folder in folders]
    model.add_weighted_adapter(names, list(weights), "merged", combination_type=kind, **settings)  # type: ignore[operator]
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("merged")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "merged" in module.lora_A
    }


def ours(folders: Sequence[Path], tmp_path: Path, **settings: Any) -> dict[str, Tensor]:
    merge_folders(folders, Recipe(num_parents=len(folders), **settings)).write(tmp_path / "out")
    with Parent(tmp_path / "out") as parent:
        return {path: parent.delta(path).dense() for path in parent.modules}


@pytest.mark.parametrize(
    ("method", "kind", "settings"),
    [
        ("cat", "cat", {}),
        ("linear", "cat", {}),
        ("peft_compat:cat", "cat", {}),
        ("peft_compat:svd", "svd", {}),
        ("svd", "svd", {"rank": 3}),
        ("svd", "svd", {"rank": 8}),
        ("peft_compat:linear", "linear", {}),
        ("peft_compat:ties", "ties", {"density": 0.4}),
        ("peft_compat:magnitude_prune", "magnitude_prune", {"density": 0.3}),
        ("peft_compat:ties_svd", "ties_svd", {"density": 0.4}),
        ("peft_compat:magnitude_prune_svd", "magnitude_prune_svd", {"density": 0.3}),
    ],
)
def test_a_merge_is_what_peft_makes_of_it(
    make_parent: MakeParent,
    tmp_path: Path,
    error: Measure,
    method: str,
    kind: str,
    settings: dict[str, Any],
) -> None:
    one = make_parent("one", task_type=None, alpha_pattern={"v_proj": 3})
    other = make_parent("other", 1, task_type=None, targets=("q_proj", "down_proj"), lora_alpha=12)
    folders = [one, other]
    rank = settings.pop("rank", None)
    peft_settings = {**settings, **({"svd_rank": rank} if rank else {})}
    expected = by_peft(folders, (0.7, -0.3), kind, **peft_settings)
    found = ours(
        folders,
        tmp_path,
        method=method,
        weights=(0.7, -0.3),
        rank=RankPolicy(rank=rank) if rank else None,
        **settings,
    )
    assert found.keys() == expected.keys()
    for path, matrix in expected.items():
        assert error(found[path], matrix) < (1e-6 if "linear" in kind else 1e-5), path


def test_pefts_linear_is_not_the_sum_of_the_deltas(
    make_parent: MakeParent, tmp_path: Path, error: Measure
) -> None:
    """Why it is not called linear here: an adapter with itself comes out twice as strong."""
    one = make_parent("one")
    found = ours([one, one], tmp_path, method="peft_compat:linear", weights=(0.5, 0.5))
    with Parent(one) as parent:
        for path in parent.modules:
            assert error(found[path], 2 * parent.delta(path).dense()) < 1e-6


def test_what_peft_gets_wrong_or_refuses_is_refused(make_parent: MakeParent) -> None:
    one, stabilized = make_parent("one"), make_parent("stabilized", 1, use_rslora=True)
    for method in ("peft_compat:cat", "peft_compat:svd", "peft_compat:linear"):
        with pytest.raises(AdapterRejected, match="stabilized uses rsLoRA"):
            merge_folders([one, stabilized], Recipe(num_parents=2, method=method))
    thin = make_parent("thin", 1, rank=2)
    with pytest.raises(AdapterRejected, match="equal ranks"):
        merge_folders([one, thin], Recipe(num_parents=2, method="peft_compat:linear"))
