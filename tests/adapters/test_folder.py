"""Hostile PEFT folders: each is refused for its own reason, by name."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CHUNK_BYTES, CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.inspection import GateLimits, inspect_source
from multiflora.adapters.peft_format import PREFIX
from multiflora.adapters.target import Projection

A0 = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
BIG_INT = 10**400
Damage = Callable[[Path], Any]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the parsed header, leave the data."""

    def damage(folder: Path) -> None:
        found, data = split((folder / WEIGHTS_NAME).read_bytes())
        edit(found)
        (folder / WEIGHTS_NAME).write_bytes(join(json.dumps(found).encode(), data))

    return damage


def first(**fields: Any) -> Damage:
    return header(lambda found: found[A0].update(fields))


def raw_header(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        found, data = split((folder / WEIGHTS_NAME).read_bytes())
        (folder / WEIGHTS_NAME).write_bytes(join(change(json.dumps(found).encode()), data))

    return damage


def renamed(name: str) -> Damage:
    return header(lambda found: found.__setitem__(name, found.pop(A0)))


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def raw_config(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_bytes(change(path.read_bytes()))

    return damage


def alpha(text: str) -> Damage:
    return raw_config(lambda raw: raw.replace(b'"lora_alpha": 8', f'"lora_alpha": {text}'.encode()))


def replaced(name: str, make: Callable[[Path], Any]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder / "aside")
        make(folder / name)

    return damage


def many_tensors(folder: Path) -> None:
    save_file({f"t{i}": np.zeros(1, "f4") for i in range(65)}, folder / WEIGHTS_NAME)


def large_rank(folder: Path) -> None:
    tensors = {
        f"{PREFIX}model.layers.{i}.self_attn.q_proj.lora_{half}.weight": np.ones(shape, "f4")
        for i in range(2)
        for half, shape in (("A", (32, 64)), ("B", (64, 32)))
    }
    save_file(tensors, folder / WEIGHTS_NAME)
    config(r=32, target_modules=["q_proj"])(folder)


def nest(levels: int) -> Any:
    return [] if levels == 0 else [nest(levels - 1)]


HOSTILE: Mapping[str, tuple[Damage, str, str]] = {
    "bool in a shape": (first(shape=[True, 256]), "invalid_file", f"{A0} is malformed"),
    "float in a shape": (first(shape=[4.0, 64]), "invalid_file", f"{A0} is malformed"),
    "string in a shape": (first(shape=["4", 64]), "invalid_file", f"{A0} is malformed"),
    "shape is a string": (first(shape="44"), "invalid_file", f"{A0} is malformed"),
    "nine dimensions": (first(shape=[1] * 9), "invalid_file", "at most 8"),
    "negative shape": (first(shape=[-4, -64]), "invalid_file", "-4 is no size"),
    "zero and huge": (first(shape=[0, 10**17]), "invalid_file", f"{A0} has a shape"),
    "overflowing product": (first(shape=[10**17] * 8), "invalid_file", f"{A0} has a shape"),
    "overflowing size": (first(shape=[2**64 + 4, 64]), "invalid_file", "no size or offset"),
    "float offsets": (first(data_offsets=[0.0, 1024.0]), "invalid_file", f"{A0} is malformed"),
    "bool offset": (first(data_offsets=[False, 1024]), "invalid_file", f"{A0} is malformed"),
    "one offset": (first(data_offsets=[0]), "invalid_file", f"{A0} is malformed"),
    "negative offset": (first(data_offsets=[-1024, 0]), "invalid_file", "-1024 is no size"),
    "backward offsets": (first(data_offsets=[1024, 0]), "invalid_file", f"{A0} has a shape"),
    "overlap": (first(data_offsets=[4, 1028]), "invalid_file", "overlaps or leaves a hole"),
    "beyond the file": (first(data_offsets=[10**15, 10**15 + 1024]), "invalid_file", "hole"),
    "extra field": (first(stride=[1, 1]), "invalid_file", f"{A0} is malformed"),
    "dtype is a list": (first(dtype=["F32"]), "invalid_file", f"{A0} is malformed"),
    "double precision": (first(dtype="F64"), "unsupported_dtype", f"{A0} is F64"),
    "entry is a list": (
        header(lambda h: h.__setitem__(A0, [])),
        "invalid_file",
        f"{A0} is malformed",
    ),
    "long name": (renamed("x" * 513), "invalid_file", "513 characters"),
    "name in Cyrillic": (renamed(A0.replace("a", "\u0430")), "invalid_file", "ASCII"),
    "name with a line break": (renamed(f"{A0}\nINFO ok"), "invalid_file", "printable"),
    "lone surrogate": (renamed("\ud800"), "invalid_file", "ASCII"),
    "metadata with numbers": (
        header(lambda h: h.__setitem__("__metadata__", {"x": 1})),
        "invalid_file",
        "__metadata__",
    ),
    "duplicate tensor": (
        raw_header(lambda raw: raw[:-1] + b', "' + A0.encode() + b'": {}}'),
        "invalid_file",
        "twice",
    ),
    "duplicate field": (
        raw_header(lambda raw: raw.replace(b'"dtype"', b'"dtype": "F16", "dtype"', 1)),
        "invalid_file",
        "twice",
    ),
    "header NaN": (raw_header(lambda _: b'{"a": NaN}'), "invalid_file", "NaN"),
    "deep header": (
        raw_header(lambda _: b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "invalid_file",
        "header",
    ),
    "UTF-16 header": (
        raw_header(lambda raw: raw.decode().encode("utf-16-le")),
        "invalid_file",
        "header",
    ),
    "header with a blank first": (raw_header(lambda raw: b" " + raw), "invalid_file", "start"),
    "header that is no UTF-8": (raw_header(lambda raw: raw + b"\xff"), "invalid_file", "utf-8"),
    "5 MiB header": (
        raw_header(lambda raw: raw + b" " * (5 << 20)),
        "adapter_too_large",
        "max_bytes",
    ),
    "one number of 5000 digits": (
        raw_header(lambda _: b'{"a": %s}' % (b"9" * 5000)),
        "invalid_file",
        "no size or offset",
    ),
    "65 tensors": (many_tensors, "adapter_too_large", "65 tensors"),
    "2 MiB of weights": (
        lambda folder: os.truncate(folder / WEIGHTS_NAME, 2 << 20),
        "adapter_too_large",
        "raise max_bytes",
    ),
    "rank 32": (large_rank, "rank_too_large", r"rank 32, over 16"),
    "alpha NaN": (alpha("NaN"), "invalid_config", "NaN is no JSON number"),
    "alpha -Infinity": (alpha("-Infinity"), "invalid_config", "-Infinity is no JSON"),
    "alpha 1e999": (alpha("1e999"), "invalid_config", "lora_alpha is inf"),
    "alpha of 400 digits": (alpha(str(BIG_INT)), "invalid_config", "lora_alpha is 1000"),
    "alpha of 5000 digits": (alpha("9" * 5000), "invalid_config", "is not JSON"),
    "alpha true": (alpha("true"), "invalid_config", "lora_alpha is True"),
    "rank of 400 digits": (config(r=BIG_INT), "invalid_config", "r is 1000"),
    "rank true": (config(r=True), "invalid_config", "r is True"),
    "rslora in words": (config(use_rslora="false"), "invalid_config", "use_rslora is 'false'"),
    "rank_pattern is a list": (config(rank_pattern=[4]), "invalid_config", "rank_pattern is"),
    "pattern is no regex": (config(rank_pattern={"(": 4}), "invalid_config", "no regex"),
    "pattern with flags": (config(alpha_pattern={"(?i)q": 4}), "invalid_config", "no regex"),
    "long pattern": (config(target_modules="a" * 513), "invalid_config", "513 characters"),
    "layer is true": (
        config(layers_to_transform=[True]),
        "invalid_config",
        "layers_to_transform is",
    ),
    "layers_pattern is a number": (config(layers_pattern=7), "invalid_config", "layers_pattern"),
    "layers_pattern with a group": (config(layers_pattern="(a|b)"), "invalid_config", "group"),
    "deep config": (config(loftq_config=nest(8)), "invalid_config", "deeper than 8"),
    "deep beyond the parser": (
        raw_config(lambda _: b'{"r":' * 10**5),
        "invalid_config",
        "not JSON",
    ),
    "config key twice": (
        raw_config(lambda raw: b'{"r": 1, ' + raw[1:]),
        "invalid_config",
        "twice",
    ),
    "config in UTF-16": (
        raw_config(lambda raw: raw.decode().encode("utf-16")),
        "invalid_config",
        "not JSON",
    ),
    "2 MiB config": (raw_config(lambda raw: raw + b" " * (2 << 20)), "invalid_config", "over"),
    "weights are a link": (
        replaced(WEIGHTS_NAME, lambda path: path.symlink_to("aside")),
        "unsafe_file",
        f"{WEIGHTS_NAME} is a link",
    ),
    "config is a link": (
        replaced(CONFIG_NAME, lambda path: path.symlink_to("/etc/passwd")),
        "unsafe_file",
        f"{CONFIG_NAME} is a link",
    ),
    "weights are a pipe": (replaced(WEIGHTS_NAME, os.mkfifo), "unsafe_file", WEIGHTS_NAME),
    "config is a pipe": (replaced(CONFIG_NAME, os.mkfifo), "unsafe_file", CONFIG_NAME),
    "weights are a folder": (replaced(WEIGHTS_NAME, Path.mkdir), "unsafe_file", WEIGHTS_NAME),
    "weights are a device": (
        replaced(WEIGHTS_NAME, lambda path: path.symlink_to("/dev/zero")),
        "unsafe_file",
        "device",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(
    case: str,
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
    limits: GateLimits,
    tmp_path: Path,
) -> None:
    damage, code, message = HOSTILE[case]
    damage(folder := write_adapter())
    (tmp_path / "staged").mkdir()
    with pytest.raises(AdapterRejected, match=message) as caught:
        inspect_source(folder, tmp_path / "staged", projections=projections, limits=limits)
    assert caught.value.code == code
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_the_gate_refuses_them_all_at_no_lasting_cost(
    write_adapter: Callable[..., Path], gate_refuses_all: Callable[[Mapping[Path, str]], None]
) -> None:
    codes = {}
    for number, (damage, code, _) in enumerate(HOSTILE.values()):
        damage(folder := write_adapter(f"hostile-{number}"))
        codes[folder] = code
    gate_refuses_all(codes)


@pytest.mark.parametrize("dtype", ["f2", "f4", "bf2"])
def test_every_float_is_told_finite_or_not_as_torch_does(tmp_path: Path, dtype: str) -> None:
    """All 65,536 values of the short formats, and those of F32 with the same upper half."""
    words = torch.arange(1 << 16, dtype=torch.int32)
    if dtype == "f4":
        values = (words << 16).view(torch.float32)
    else:
        values = words.to(torch.uint16).view(torch.float16 if dtype == "f2" else torch.bfloat16)
    (tmp_path / CONFIG_NAME).write_text("{}")

    def passes(part: torch.Tensor) -> bool:
        save_torch({"x": part.clone()}, tmp_path / WEIGHTS_NAME)
        try:
            AdapterFolder(tmp_path).check_finite()
        except AdapterRejected:
            return False
        return True

    assert passes(values[values.isfinite()])
    for bad in values[~values.isfinite()][::37]:
        assert not passes(torch.stack([values[0], bad, values[1]]))


@pytest.mark.parametrize("extra", [0, 1, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, 3 * CHUNK_BYTES])
def test_values_are_checked_across_chunks(tmp_path: Path, extra: int) -> None:
    (tmp_path / CONFIG_NAME).write_text("{}")
    tensor = np.zeros(CHUNK_BYTES // 4 + extra, "f4")
    save_file({"x": tensor}, tmp_path / WEIGHTS_NAME)
    AdapterFolder(tmp_path).check_finite()
    tensor[-1] = np.nan
    save_file({"x": tensor}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(AdapterRejected, match="tensor x holds NaN"):
        AdapterFolder(tmp_path).check_finite()


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text("{}")
    save_file({"x": np.zeros(4096, "f4")}, tmp_path / WEIGHTS_NAME)
    folder = AdapterFolder(tmp_path)
    assert folder.shapes == {"x": (4096,)}
    os.truncate(tmp_path / WEIGHTS_NAME, 9000)
    with pytest.raises(AdapterRejected, match="shrank"):
        folder.check_finite()


GOOD = {"a.weight": np.ones((2, 3), "f4"), "b": np.ones(5, "f2"), "c": np.ones((1, 1, 2), "f4")}


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` truncated, flipped, or with one part copied over another."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["truncate", "flip", "splice", "insert"])):
            case "truncate":
                del changed[start:]
            case "flip":
                changed[start : start + 1] = bytes([draw(st.integers(0, 255))])
            case "splice":
                length = draw(st.integers(0, 64))
                origin = draw(st.integers(0, len(content)))
                changed[start : start + length] = content[origin : origin + length]
            case _:
                words = [b"null", b"-0", b"1e3", b'"', b"[", b"{}", b"\\ud800", b"\0", b"9" * 30]
                changed[start:start] = draw(st.sampled_from(words))
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_file_is_accepted_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_NAME).write_text("{}")
    save_file(GOOD, folder / WEIGHTS_NAME)
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data.draw(damaged(content)))
    try:
        opened = AdapterFolder(folder)
        opened.check_finite()
        opened.digest("")
    except AdapterRejected:
        return
    # What passes is what the library reads that loads it later.
    with safetensors.safe_open(folder / WEIGHTS_NAME, framework="pt") as tensors:
        assert {name: tensors.get_tensor(name).shape for name in tensors.keys()} == {  # noqa: SIM118
            name: torch.Size(shape) for name, shape in opened.shapes.items()
        }
