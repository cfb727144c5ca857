"""An exported model says what its base with the adapter says, to transformers and to us."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from multiflora.adapters.error import AdapterRejected
from multiflora.engine.config import BaseConfig
from multiflora.engine.errors import ExportRefused, NotEnoughMemory
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.kernels import nf4, torch_ops
from multiflora.kernels.quantize import quantize

from ..peft_extras import BASES, EXTRAS, Extras

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROMPT = torch.tensor([list(range(5, 45))])
DEMO = Path("engine/demo")
ModelFolder = Callable[..., Path]
AdapterFolders = Callable[[str], dict[str, Path]]
Export = Callable[..., tuple[Path, dict[str, Any]]]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(PROMPT).logits[0]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )


def with_adapter(folder: Path, adapter: Path, *, quantized: bool = True) -> Any:
    """PEFT on the (dequantized) base: the oracle."""
    model = load(folder)
    for name, module in model.named_modules():
        if quantized and isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
            module.weight.data = nf4.dequantize(quantize(module.weight.data))
    return PeftModel.from_pretrained(model, adapter)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_peft_on_the_dequantized_base(
    family: str, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    for name in ("rank-8-rslora", "rank-16-patterns", "rank-4-layers"):
        adapter = adapter_folders(family)[name]
        out, report = export(model_folder(family), adapter, name=name)
        expected = logits(with_adapter(model_folder(family), adapter))
        torch.testing.assert_close(logits(load(out)), expected, atol=2e-4, rtol=0)
        assert report["summary"]["delta_kept"] == 1


def test_original_weights_and_an_adapter_weight_are_honoured(
    model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    adapter = adapter_folders("llama")["rank-3"]
    out, _ = export(model_folder("llama"), adapter, base="original", weight=-0.5)
    peft_model = with_adapter(model_folder("llama"), adapter, quantized=False)
    for module in peft_model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= -0.5
    torch.testing.assert_close(logits(load(out)), logits(peft_model), atol=2e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_shards_load_in_transformers_with_all_files_beside(
    tied: bool, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    model = model_folder("qwen2", tie_word_embeddings=tied)
    adapter = adapter_folders("qwen2")["rank-3"]
    whole, _ = export(model, adapter, name="whole")
    out, _ = export(model, adapter, max_shard_bytes=200_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:
        tensors = load_file(out / file)
        assert {index["weight_map"][name] for name in tensors} == {file}
        assert sum(t.nbytes for t in tensors.values()) <= 200_000 or len(tensors) == 1
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert torch.equal(logits(load(out)), logits(load(whole)))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    template = transformers.AutoTokenizer.from_pretrained(out).chat_template
    assert template == transformers.AutoTokenizer.from_pretrained(model).chat_template


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_report_measures_rounding_and_logits(
    dtype: str, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    adapter = adapter_folders("llama")["rank-8-rslora"]
    out, report = export(model_folder("llama"), adapter, dtype=dtype, verify=True)
    assert json.loads((out / "export_report.json").read_text()) == report
    exact = load_file(export(model_folder("llama"), adapter, name="exact")[0] / "model.safetensors")
    stored = load_file(out / "model.safetensors")
    values = json.loads((out / "config.json").read_text())
    assert values["dtype"] == dtype
    path = "model.layers.1.self_attn.q_proj"
    merged, rounded = (tensors[f"{path}.weight"].double() for tensors in (exact, stored))
    record = report["modules"][path]
    error = float((rounded - merged).norm())
    assert record["rounding_error"] == pytest.approx(error / float(merged.norm()), rel=1e-4)
    assert record["delta_error"] == pytest.approx(error / record["delta_norm"], rel=1e-4)
    assert record["rank"] == 8
    assert "delta_norm" not in report["modules"]["model.layers.1.mlp.up_proj"]
    found = report["logits"]
    assert found["positions"] == 4 * 48
    # These random models amplify; bfloat16 weights alone move their logits by some percent.
    assert 0 < found["mean_difference"] < 0.1 * found["spread"]
    assert found["mean_difference"] < found["max_difference"]
    assert found["greedy_agreement"] > 0.8


def test_exact_exports_agree_with_the_served_model_in_every_logit(
    model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    for family in ("mistral", "qwen2"):
        adapter = adapter_folders(family)["rank-16-patterns"]
        _, report = export(model_folder(family), adapter, name=family, verify=True, weight=0.7)
        assert report["logits"]["max_difference"] < 1e-3
        assert report["logits"]["greedy_agreement"] == 1


def test_a_prequantized_base_with_a_delta_of_its_own_dtype(export: Export) -> None:
    out, report = export(DEMO / "base", DEMO / "adapters" / "pirate", verify=True)
    assert report["logits"]["max_difference"] < 1e-3
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert load(out).config.tie_word_embeddings
    with pytest.raises(ExportRefused, match="original weights are not in it"):
        export(DEMO / "base", DEMO / "adapters" / "pirate", name="other", base="original")


def test_values_beyond_float16_are_refused(
    tmp_path: Path, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    model = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    adapter = adapter_folders("llama")["rank-1"]
    with pytest.raises(ExportRefused, match=r"model\.norm\.weight.*use --dtype bfloat16"):
        export(model, adapter, dtype="float16")
    export(model, adapter, dtype="bfloat16")


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_output_is_refused(
    kind: str,
    tmp_path: Path,
    model_folder: ModelFolder,
    adapter_folders: AdapterFolders,
    export: Export,
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="choose another folder"):
        export(model_folder("llama"), adapter_folders("llama")["rank-1"])
    assert os.listdir(tmp_path) == ["out"]


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    with pytest.raises(AdapterRejected, match="another base"):
        export(model_folder("llama"), adapter_folders("qwen3")["rank-8-rslora"])
    assert not list(tmp_path.iterdir())


QUIET_PEFT = [
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=QUIET_PEFT) for name in EXTRAS if name != "plain"]
)
def test_more_than_lora_on_linears_is_refused(
    name: str, tmp_path: Path, extras: Callable[[str], Extras], export: Export
) -> None:
    model, adapters = extras("biased")
    with pytest.raises(AdapterRejected):
        export(model, adapters[name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("base", [pytest.param(base, marks=QUIET_PEFT) for base in BASES])
def test_a_head_is_merged_unless_it_is_the_embedding(
    base: str, tmp_path: Path, extras: Callable[[str], Extras], export: Export
) -> None:
    model, adapters = extras(base)
    # As PEFT saves it without copies of the base's embeddings.
    adapter = Path(shutil.copytree(adapters["head"], tmp_path / "adapter"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    save_file(lora, adapter / "adapter_model.safetensors")
    if base == "tied":
        with pytest.raises(ExportRefused, match="shares with the embedding"):
            export(model, adapter)
        return
    out, report = export(model, adapter, verify=True)
    expected = logits(with_adapter(model, adapter))
    torch.testing.assert_close(logits(load(out)), expected, atol=2e-4, rtol=0)
    assert report["logits"]["max_difference"] < 1e-3
    assert report["modules"]["lm_head"]["rank"] == 4


def test_a_full_disk_leaves_nothing(
    tmp_path: Path,
    model_folder: ModelFolder,
    adapter_folders: AdapterFolders,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter = model_folder("llama"), adapter_folders("llama")["rank-1"]
    written = []

    def fail(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            export(model, adapter, max_shard_bytes=100_000)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ExportRefused, match="1000 left"):
        export(model, adapter)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_to_compare_is_found_first(
    tmp_path: Path,
    model_folder: ModelFolder,
    adapter_folders: AdapterFolders,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter = model_folder("llama"), adapter_folders("llama")["rank-1"]
    monkeypatch.setattr("multiflora.engine.memory_plan.available_memory", lambda: 1 << 20)
    with pytest.raises(NotEnoughMemory, match="or skip that with --no-verify"):
        export(model, adapter, verify=True)
    assert not list(tmp_path.iterdir())
    export(model, adapter)


def test_our_engine_loads_what_was_merged(
    model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    out, _ = export(model_folder("qwen3"), adapter_folders("qwen3")["rank-40-down"])
    weights = load_base(
        out,
        load_model_config(out),
        BaseConfig(model=str(out), quantization="none"),
        ops=torch_ops,
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_dir=None,
        progress=lambda *_: None,
    )
    stored = load_file(out / "model.safetensors")
    found = dict(weights.tensors())
    down = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(found["layers.2.down"], stored[down])
