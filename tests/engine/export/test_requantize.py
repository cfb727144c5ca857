"""What is left of a delta in NF4 is measured, bounded, and written in bitsandbytes' form."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from multiflora.adapters.merging.parent import Parent
from multiflora.engine.config import BaseConfig
from multiflora.engine.errors import ExportRefused
from multiflora.engine.models.load import load_base
from multiflora.engine.models.plain_base import PlainBase
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.weights import BaseWeights
from multiflora.kernels import torch_ops

DEMO = Path("engine/demo")
ModelFolder = Callable[..., Path]
AdapterFolders = Callable[[str], dict[str, Path]]
Export = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def scaled(tmp_path: Path, adapter_folders: AdapterFolders) -> Callable[[float], Path]:
    """``scaled(factor)``: an adapter on all linears of the llama whose B is scaled."""

    def make(factor: float) -> Path:
        source = adapter_folders("llama")["rank-3"]
        folder = tmp_path / f"times-{factor}"
        folder.mkdir()
        config = (source / "adapter_config.json").read_bytes()
        (folder / "adapter_config.json").write_bytes(config)
        tensors = load_file(source / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor *= factor
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


def load_ours(folder: Path) -> BaseWeights:
    return load_base(
        folder,
        load_model_config(folder),
        BaseConfig(model=str(folder)),
        ops=torch_ops,
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_dir=None,
        progress=lambda *_: None,
    )


def linears(folder: Path) -> dict[str, torch.Tensor]:
    base = PlainBase(folder)
    return {target.path: base.linear(target) for target in base.targets}


def test_small_deltas_vanish_and_large_ones_survive(
    model_folder: ModelFolder, scaled: Callable[[float], Path], export: Export
) -> None:
    kept = {}
    for factor in (0.02, 0.1, 3):
        _, report = export(
            model_folder("llama"), scaled(factor), name=str(factor), requantize=True, force=True
        )
        kept[factor] = report["summary"]
    assert kept[0.02]["relative_delta"] < 0.01
    assert abs(kept[0.02]["delta_kept"]) < 0.1
    assert kept[0.02]["delta_kept"] < kept[0.1]["delta_kept"] < kept[3]["delta_kept"]
    assert kept[3]["relative_delta"] > 0.5
    assert kept[3]["delta_kept"] == pytest.approx(1, abs=0.02)
    assert kept[0.02]["delta_error"] > 0.9 > 0.3 > kept[3]["delta_error"]


def test_the_measure_is_what_the_written_weights_say(
    model_folder: ModelFolder, scaled: Callable[[float], Path], export: Export
) -> None:
    adapter = scaled(0.2)
    out, report = export(model_folder("llama"), adapter, requantize=True, force=True)
    exact, _ = export(model_folder("llama"), adapter, name="exact")
    before, after = linears(model_folder("llama")), linears(out)
    merged = load_file(exact / "model.safetensors")
    inner = squared = 0.0
    for path, stored in after.items():
        delta = (merged[f"{path}.weight"] - before[path]).double()
        change = ((stored - before[path]).double() * delta).sum()
        kept = float(change / delta.square().sum())
        assert report["modules"][path]["delta_kept"] == pytest.approx(kept, abs=1e-3)
        inner, squared = inner + float(change), squared + float(delta.square().sum())
    assert report["summary"]["delta_kept"] == pytest.approx(inner / squared, abs=1e-3)


def test_a_lost_delta_is_refused_without_force(
    tmp_path: Path, model_folder: ModelFolder, scaled: Callable[[float], Path], export: Export
) -> None:
    adapter = scaled(0.02)
    with pytest.raises(ExportRefused, match=r"below 0\.8 .*serve base and adapter unmerged"):
        export(model_folder("llama"), adapter, requantize=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportRefused, match=r"below 0\.9999"):
        export(model_folder("llama"), scaled(3), requantize=True, min_delta_kept=0.9999)
    export(model_folder("llama"), adapter, requantize=True, min_delta_kept=-1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_our_loader_and_bitsandbytes_read_the_same_weights(
    family: str, model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    adapter = adapter_folders(family)["rank-8-rslora"]
    out, report = export(model_folder(family), adapter, requantize=True, force=True, verify=True)
    assert load_model_config(out).prequantized
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, device_map="cpu"
    )
    ours = linears(out)
    for path, weight in ours.items():
        # Ready to train it decodes; otherwise it may multiply in bfloat16.
        module = theirs.get_submodule(path).train()
        assert type(module).__name__ == "Linear4bit"
        bias = 0 if module.bias is None else module.bias
        found = module(torch.eye(weight.shape[1])) - bias
        torch.testing.assert_close(found.T.float(), weight, atol=1e-5, rtol=1e-5)
    assert report["logits"]["greedy_agreement"] > 0.1
    assert report["linears"] == "nf4"


def test_untouched_linears_keep_their_codes(
    model_folder: ModelFolder, adapter_folders: AdapterFolders, export: Export
) -> None:
    adapter = adapter_folders("llama")["rank-40-down"]
    out, report = export(model_folder("llama"), adapter, requantize=True, force=True)
    before, after = load_ours(model_folder("llama")), load_ours(out)
    for old, new in zip(before.layers, after.layers, strict=True):
        assert_same(old.qkv, new.qkv)
        assert_same(old.gate_up, new.gate_up)
        with pytest.raises(AssertionError):
            assert_same(old.down, new.down)
    assert all(path.endswith("down_proj") for path in report["modules"])


def assert_same(left: Any, right: Any) -> None:
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name


def test_a_prequantized_base_passes_untouched_linears_on(export: Export) -> None:
    # "pirate" adapts attention only.
    adapter = DEMO / "adapters" / "pirate"
    out, _ = export(DEMO / "base", adapter, requantize=True, force=True, max_shard_bytes=300_000)
    before = load_file(DEMO / "base" / "model.safetensors")
    after = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if ".mlp." in name:
            assert torch.equal(after[name].reshape(-1), tensor.reshape(-1)), name
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        weight = name.split(".weight")[0] + ".weight"
        assert index[weight] == file, "a weight and its companions share a file"


def test_linears_that_a_checkpoint_keeps_dense_stay_dense(export: Export, tmp_path: Path) -> None:
    path = "model.layers.0.self_attn.o_proj"
    model = Path(shutil.copytree(DEMO / "base", tmp_path / "model"))
    dense = linears(model)[path].bfloat16()
    tensors = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{path}.")}
    save_file(kept | {f"{path}.weight": dense}, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"].append(path)
    (model / "config.json").write_text(json.dumps(config))

    adapter = DEMO / "adapters" / "pirate"
    out, report = export(model, adapter, requantize=True, force=True, verify=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, device_map="cpu")
    with Parent(adapter) as parent:
        expected = dense.float() + parent.delta(path).dense()
    torch.testing.assert_close(theirs.get_submodule(path).weight.float(), expected)
    assert report["modules"][path]["delta_kept"] == pytest.approx(1)
    assert type(theirs.model.layers[1].self_attn.o_proj).__name__ == "Linear4bit"
