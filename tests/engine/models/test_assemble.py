"""Tables are held as the backend wants them, fresh or from the prepared form."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiflora.kernels import torch_ops
from multiflora.kernels.ops import DenseWeight

from .conftest import load

SaveModel = Callable[..., Path]


def keep_bfloat16(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return stored if stored == torch.bfloat16 else dtype


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_backend_may_keep_bfloat16_tables_under_float32(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(torch_ops, "table_dtype", keep_bfloat16)
    folder = save_model("qwen2", dtype=torch.bfloat16, tie_word_embeddings=tied)
    stored = load_file(folder / "model.safetensors")
    for cache in (None, tmp_path / "prepared", tmp_path / "prepared"):
        weights = load(folder, cache)
        assert isinstance(weights.head, DenseWeight)
        assert torch.equal(weights.embedding, stored["model.embed_tokens.weight"])
        assert weights.embedding.dtype == weights.head.data.dtype == torch.bfloat16
        assert (weights.head.data.data_ptr() == weights.embedding.data_ptr()) == tied
        assert weights.norm.dtype == torch.float32


def test_other_tables_take_the_model_s_dtype(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = save_model(dtype=torch.bfloat16)
    assert load(narrow).embedding.dtype == torch.float32
    monkeypatch.setattr(torch_ops, "table_dtype", keep_bfloat16)
    assert load(save_model()).embedding.dtype == torch.float32
