"""What is written is an ordinary PEFT folder with scaling 1, whole or not there at all."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.delta import Delta, zero_delta
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.write import REPORT_NAME, round_delta, write_adapter

MakeDelta = Callable[..., Delta]
PATHS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj")


def write(out: Path, deltas: dict[str, Delta], **settings: Any) -> None:
    dtype = settings.pop("dtype", torch.float32)
    stored = {path: round_delta(delta, dtype) for path, delta in deltas.items()}
    write_adapter(out, stored, **{"base_name": "some/base", **settings})


@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 5, 1)], ids=["equal-ranks", "mixed-ranks"])
def test_deltas_come_back_as_they_were_written(
    random_delta: MakeDelta, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    deltas = {path: random_delta(12, 8, rank) for path, rank in zip(PATHS, ranks, strict=True)}
    write(tmp_path / "out", deltas)
    with Parent(tmp_path / "out") as parent:
        assert parent.base_name == "some/base"
        assert [module.rank for module in parent.modules.values()] == list(ranks)
        for path, delta in deltas.items():
            assert parent.modules[path].scale == 1
            assert torch.equal(parent.delta(path).b, delta.b)
            assert torch.equal(parent.delta(path).a, delta.a)


def test_balancing_changes_no_bit_of_the_product(random_delta: MakeDelta) -> None:
    delta = random_delta(12, 8, 1)
    lopsided = Delta(delta.b * 2**20, delta.a / 2**20)
    assert torch.equal(lopsided.balanced().dense(), delta.dense())
    assert 0.5 < lopsided.balanced().b.norm() / lopsided.balanced().a.norm() < 2


def test_lopsided_factors_fit_float16(random_delta: MakeDelta) -> None:
    delta = random_delta(12, 8, 2)
    stored = round_delta(Delta(delta.b * 2**20, delta.a / 2**20), torch.float16)
    assert stored.rounding_error < 5e-4


@pytest.mark.parametrize("ranks", [(3, 3), (1, 4)], ids=["equal-ranks", "mixed-ranks"])
def test_peft_reads_the_folder_with_the_same_effect(
    random_delta: MakeDelta, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    from peft import PeftModel

    linears = [torch.nn.Linear(8, 12), torch.nn.Linear(8, 12)]
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(linears)})
    deltas = {f"layers.{i}": random_delta(12, 8, rank, i) for i, rank in enumerate(ranks)}
    write(tmp_path / "out", deltas, task_type=None)
    before = [linear.weight.detach().clone() for linear in linears]
    merged: Any = PeftModel.from_pretrained(model, str(tmp_path / "out"))  # type: ignore[arg-type]
    merged = merged.merge_and_unload()
    for index, delta in enumerate(deltas.values()):
        change = merged["layers"][index].weight.detach() - before[index]
        torch.testing.assert_close(change, delta.dense(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4), (torch.float32, 0)]
)
def test_the_rounding_error_is_that_of_the_product(
    random_delta: MakeDelta, dtype: torch.dtype, bar: float
) -> None:
    delta = random_delta(64, 48, 4)
    stored = round_delta(delta, dtype)
    exact = delta.dense().double()
    actual = (stored.b.double() @ stored.a.double() - exact).norm() / exact.norm()
    assert stored.rounding_error == pytest.approx(float(actual), rel=1e-2, abs=1e-6)
    assert stored.rounding_error <= bar


def test_a_zero_delta_is_one_rank_of_zeros(tmp_path: Path) -> None:
    write(tmp_path / "out", {PATHS[0]: zero_delta((12, 8))})
    with Parent(tmp_path / "out") as parent:
        assert not parent.delta(PATHS[0]).dense().any()


def test_what_overflows_the_dtype_is_refused(random_delta: MakeDelta) -> None:
    with pytest.raises(AdapterRejected, match="float32"):
        round_delta(random_delta(4, 4, 1).scaled(1e12), torch.float16)


def test_the_report_lies_beside_the_weights(random_delta: MakeDelta, tmp_path: Path) -> None:
    write(tmp_path / "out", {PATHS[0]: random_delta(12, 8, 1)}, report={"method": "linear"})
    assert json.loads((tmp_path / "out" / REPORT_NAME).read_text()) == {"method": "linear"}


def test_an_existing_output_is_refused_and_stays(random_delta: MakeDelta, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterRejected, match="exists"):
        write(tmp_path / "out", {PATHS[0]: random_delta(12, 8, 1)})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_nothing(
    random_delta: MakeDelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = iter(range(1, 10))
    real = os.fsync

    def fail(descriptor: int) -> None:
        # Delayed allocation: a file that was written may find no room when it is synced.
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", {PATHS[0]: random_delta(12, 8, 1)}, report={})
    assert list(tmp_path.iterdir()) == []
