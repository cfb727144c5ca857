"""Tensors of a stored version equal what safetensors reads of the same file."""

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.mapped_tensors import MappedTensors

TENSORS = {
    "wide": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 3).bfloat16(),
    "one": torch.randn(1, 1),
}


def folder(path: Path, *, padding: int = 0) -> AdapterFolder:
    """``padding`` blanks more in the header move all tensors."""
    content = save(TENSORS)
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size] + b" " * padding
    (path / WEIGHTS_NAME).write_bytes(
        len(header).to_bytes(8, "little") + header + content[8 + size :]
    )
    (path / CONFIG_NAME).write_text(json.dumps({}))
    return AdapterFolder(path)


@pytest.mark.parametrize("padding", range(9))
def test_every_tensor_is_what_was_saved_wherever_the_header_ends(
    tmp_path: Path, padding: int
) -> None:
    tensors = MappedTensors(folder(tmp_path, padding=padding))
    for name, expected in TENSORS.items():
        found = tensors.get(name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_view_outlives_its_file(tmp_path: Path) -> None:
    view = MappedTensors(folder(tmp_path)).get("wide")
    (tmp_path / WEIGHTS_NAME).unlink()
    gc.collect()
    assert torch.equal(view, TENSORS["wide"])


def test_a_write_stays_in_memory(tmp_path: Path) -> None:
    source = folder(tmp_path)
    before = (tmp_path / WEIGHTS_NAME).read_bytes()
    MappedTensors(source).get("wide").zero_()
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == before


def test_a_name_that_is_not_there_and_a_link_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path)
    with pytest.raises(KeyError):
        MappedTensors(source).get("other")
    (tmp_path / WEIGHTS_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / WEIGHTS_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRejected, match="regular"):
        MappedTensors(source)
