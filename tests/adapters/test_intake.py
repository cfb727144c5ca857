"""An adapter comes in whole and exact, or not at all."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.peft_format import PREFIX
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection

Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    (tmp_path / "data").mkdir()
    return AdapterStore(tmp_path / "data")


def stored(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_a_good_adapter_is_stored_under_its_digest(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], store: AdapterStore
) -> None:
    folder = write_adapter()
    digest = import_adapter(folder, projections=projections, store=store)
    kept = store.open(digest)
    assert kept.config == json.loads((folder / "adapter_config.json").read_text())
    assert kept.shapes == AdapterFolder(folder).shapes
    assert import_adapter(folder, projections=projections, store=store) == digest


def test_the_digest_is_of_the_content_not_of_its_spelling(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], store: AdapterStore
) -> None:
    def digest_of(name: str, **changes: object) -> str:
        folder = write_adapter(name, **changes)
        return import_adapter(folder, projections=projections, store=store)

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q0}.lora_B.weight"][0, 0] += 1e-3

    plain = digest_of("plain")
    assert digest_of("regex", target_modules=r".*(q_proj|down_proj)") == plain
    assert digest_of("dropout", lora_dropout=0.3, base_model_name_or_path="elsewhere") == plain
    assert digest_of("alpha", lora_alpha=9) != plain
    assert digest_of("nudged", edit=nudge) != plain


def _set(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, value)


BROKEN = {
    "nan": (_set(f"{Q0}.lora_A.weight", torch.full((4, 64), float("nan"))), "NaN"),
    "infinity": (_set(f"{Q0}.lora_B.weight", torch.full((64, 4), float("inf"))), "infinity"),
    "other base": (_set(f"{Q0}.lora_A.weight", torch.zeros(4, 128)), "another base"),
    "wrong rank": (_set(f"{Q0}.lora_A.weight", torch.zeros(8, 64)), r"\[4, 64\]"),
    "extra module": (
        _set(f"{PREFIX}model.layers.9.mlp.x.lora_A.weight", torch.zeros(4, 4)),
        "no such",
    ),
    "untargeted": (
        _set(f"{PREFIX}model.layers.0.self_attn.v_proj.lora_A.weight", torch.zeros(4, 64)),
        "does not target",
    ),
    "embedding": (
        _set(f"{PREFIX}model.embed_tokens.lora_embedding_A", torch.zeros(4, 64)),
        "no such",
    ),
    "magnitude": (_set(f"{Q0}.lora_magnitude_vector", torch.zeros(64)), "no use_dora"),
    "missing half": (lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"), "is missing"),
    "integers": (_set(f"{Q0}.lora_A.weight", torch.zeros(4, 64, dtype=torch.int32)), "I32"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused_and_nothing_is_kept(
    case: str,
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
    store: AdapterStore,
    tmp_path: Path,
) -> None:
    edit, message = BROKEN[case]
    folder = write_adapter(edit=edit)
    with pytest.raises(AdapterRejected, match=message):
        import_adapter(folder, projections=projections, store=store)
    assert stored(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_non_finite_values_are_found_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for value, is_finite in ((65504.0, True), (float("-inf"), False), (float("nan"), False)):
        tensor = torch.zeros(3, 5, dtype=dtype)
        tensor[2, 4] = value
        save_file({"x": tensor}, tmp_path / "adapter_model.safetensors")
        folder = AdapterFolder(tmp_path)
        if is_finite:
            folder.check_finite()
        else:
            with pytest.raises(AdapterRejected, match="tensor x"):
                folder.check_finite()


def _rewrite(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def _with_header(header: bytes) -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", len(header)) + header


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated data": (lambda content: content[:-1], "truncated"),
    "truncated header": (lambda content: content[:40], "truncated"),
    "empty": (lambda content: b"", "truncated"),
    "trailing bytes": (lambda content: content + b"x", "padded"),
    "huge header size": (lambda content: b"\xff" * 8 + content[8:], "truncated or no safetensors"),
    "not json": (_with_header(b"{nonsense"), "header"),
    "duplicate key": (_with_header(b'{"a":{},"a":{}}'), "twice"),
    "malformed entry": (_with_header(b'{"a":{"dtype":"F32"}}'), "malformed"),
    "zero size": (
        _with_header(b'{"a":{"dtype":"F32","shape":[0,9999999],"data_offsets":[0,0]}}'),
        "not its size",
    ),
    "hole": (
        lambda c: (
            _with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}')(c) + bytes(8)
        ),
        "hole",
    ),
    "a pickle": (lambda content: b"\x80\x04" + content, "truncated or no safetensors"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(
    case: str,
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
    store: AdapterStore,
) -> None:
    change, message = DAMAGED[case]
    folder = write_adapter()
    _rewrite(folder, change)
    with pytest.raises(AdapterRejected, match=message):
        import_adapter(folder, projections=projections, store=store)


def test_folders_without_the_two_files_say_what_is_missing(
    write_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(AdapterRejected, match="does not exist"):
        AdapterFolder(tmp_path / "nowhere")
    folder = write_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterRejected, match="pickle"):
        AdapterFolder(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterRejected, match=r"no adapter_config\.json"):
        AdapterFolder(folder)


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(
    content: str, write_adapter: Callable[..., Path]
) -> None:
    folder = write_adapter()
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterRejected, match=r"adapter_config\.json"):
        _ = AdapterFolder(folder).config


@pytest.mark.parametrize("digest", ["", "../../etc", "0" * 63, "G" * 64, "0" * 64])
def test_only_a_known_digest_opens_a_version(digest: str, store: AdapterStore) -> None:
    with pytest.raises(AdapterRejected):
        store.open(digest)
