"""A known difference comes back as a LoRA, and what no LoRA holds is reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.write import REPORT_NAME
from multiflora.engine.errors import ExportRefused
from multiflora.engine.export.export import ExportSettings, export_model
from multiflora.engine.extraction.extraction import ExtractionSettings, extract_lora
from multiflora.engine.models.named_folder import NamedFolder
from multiflora.engine.models.registry import load_model_config

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"
ModelFolder = Callable[..., Path]
Extract = Callable[..., dict[str, Any]]


@pytest.fixture
def base(model_folder: ModelFolder) -> Path:
    return model_folder("qwen2")


@pytest.fixture
def tune(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """``tune({name: what to add})``: the base with changed tensors."""

    def make(changes: dict[str, torch.Tensor]) -> Path:
        folder = Path(shutil.copytree(base, tmp_path / "tuned"))
        tensors = load_file(folder / "model.safetensors")
        for name, change in changes.items():
            tensors[name] = tensors[name] + change
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.fixture
def extract(base: Path, tmp_path: Path) -> Extract:
    """``extract(model, **settings)`` into ``out``; returns the report."""

    def run(model: Path, **settings: Any) -> dict[str, Any]:
        settings = {"rank": RankPolicy(), **settings}
        return extract_lora(
            NamedFolder("tuned", model),
            NamedFolder("base", settings.pop("of", base)),
            tmp_path / "out",
            ExtractionSettings(**settings),
            progress=lambda *_: None,
        )

    return run


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def low_rank(n: int, k: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(n, rank, generator=generator)
    return 0.1 * b @ torch.randn(rank, k, generator=generator)


def test_a_low_rank_difference_comes_back(
    tune: Callable[..., Path],
    extract: Extract,
    base: Path,
    tmp_path: Path,
) -> None:
    changes = {Q: low_rank(128, 128, 3), DOWN: low_rank(128, 192, 5, seed=1)}
    model = tune({f"{path}.weight": change for path, change in changes.items()})
    report = extract(model, rank=RankPolicy(energy=0.999999))
    out = tmp_path / "out"
    with Parent(out) as parent:
        assert parent.modules.keys() == {Q, DOWN}, "the others do not differ"
        assert [parent.modules[path].rank for path in (Q, DOWN)] == [3, 5]
        for path, change in changes.items():
            assert error(parent.delta(path).dense(), change) < 1e-5
        assert parent.base_name == "base"
    assert report["modules"][Q]["norm"] == pytest.approx(float(changes[Q].norm()), rel=1e-5)
    assert report["not_held"] == []
    assert json.loads((out / REPORT_NAME).read_text()) == report
    inspect_adapter(AdapterFolder(out), load_model_config(base).projections())


def test_truncation_is_reported(
    tune: Callable[..., Path],
    extract: Extract,
    tmp_path: Path,
) -> None:
    change = torch.randn(128, 128, generator=torch.Generator().manual_seed(2))
    report = extract(tune({f"{Q}.weight": change}), rank=RankPolicy(rank=16))
    values = torch.linalg.svdvals(change.double()).square()
    kept = float(values[:16].sum() / values.sum())
    assert report["modules"][Q]["energy_kept"] == pytest.approx(kept, rel=1e-4)
    assert report["summary"]["energy_kept"] == pytest.approx(kept, rel=1e-4)
    with Parent(tmp_path / "out") as parent:
        found = error(parent.delta(Q).dense(), change)
    assert found == pytest.approx((1 - kept) ** 0.5, rel=1e-3)


def test_what_a_lora_cannot_hold_is_refused_or_listed(
    tune: Callable[..., Path], extract: Extract, tmp_path: Path
) -> None:
    others = ["model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.q_proj.bias"]
    changes = dict.fromkeys([*others, "model.embed_tokens.weight"], torch.tensor(0.5))
    model = tune({**changes, f"{Q}.weight": low_rank(128, 128, 2)})
    with pytest.raises(ExportRefused, match=r"embed_tokens.*input_layernorm.*--ignore-others"):
        extract(model)
    assert not (tmp_path / "out").exists()
    report = extract(model, ignore_others=True)
    assert report["not_held"] == ["model.embed_tokens.weight", *others]
    assert report["modules"].keys() == {Q}


@pytest.mark.parametrize("change", [None, float("nan")], ids=["equal", "nan"])
def test_models_without_a_usable_difference_are_refused(
    tune: Callable[..., Path], extract: Extract, change: float | None
) -> None:
    changes = {} if change is None else {f"{Q}.weight": torch.tensor(change)}
    message = "no linear of tuned differs" if change is None else "NaN or infinity"
    with pytest.raises(ExportRefused, match=message):
        extract(tune(changes))


def test_another_architecture_is_refused(extract: Extract, model_folder: ModelFolder) -> None:
    with pytest.raises(ExportRefused, match="tuned is no fine-tune of base"):
        extract(model_folder("mistral"))
    with pytest.raises(ExportRefused, match="is in one of them only"):
        extract(model_folder("qwen2", num_hidden_layers=2))


def test_a_grown_vocabulary_is_no_lora(
    extract: Extract, model_folder: ModelFolder, base: Path
) -> None:
    with pytest.raises(ExportRefused, match=r"embed_tokens\.weight"):
        extract(model_folder("qwen2", vocab_size=400))


def test_an_existing_output_is_refused(
    tune: Callable[..., Path], extract: Extract, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterRejected, match="out exists"):
        extract(tune({}))


def test_an_exported_adapter_is_extracted_again(
    base: Path,
    extract: Extract,
    adapter_folders: Callable[[str], dict[str, Path]],
    tmp_path: Path,
) -> None:
    adapter = adapter_folders("qwen2")["rank-16-patterns"]
    export_model(
        NamedFolder("base", base),
        NamedFolder("adapter", adapter),
        tmp_path / "model",
        ExportSettings(dtype="float32", verify=False),
        progress=lambda *_: None,
    )
    report = extract(tmp_path / "model", base_weights="quantized")
    with Parent(adapter) as before, Parent(tmp_path / "out") as after:
        assert before.modules.keys() == after.modules.keys()
        for path, module in before.modules.items():
            assert after.modules[path].rank == module.rank, path
            assert error(after.delta(path).dense(), before.delta(path).dense()) < 1e-5
    assert report["summary"]["energy_kept"] == pytest.approx(1)
