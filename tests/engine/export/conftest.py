"""Exports of the tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.export import probe
from multiflora.engine.export.export import ExportSettings, export_model
from multiflora.engine.models.named_folder import NamedFolder

Export = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(autouse=True)
def compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors without bfloat16 units, where what is left is a difference of weights."""
    monkeypatch.setattr(probe, "has_fast_bfloat16", lambda: False)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """``export(model, adapter, name="out", **settings)`` -> the new folder and its report.

    Unlike the command it writes float32 and compares no logits unless it is told to.
    """

    def run(
        model: Path, adapter: Path, *, name: str = "out", **settings: Any
    ) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / name
        report = export_model(
            NamedFolder("base", model),
            NamedFolder("adapter", adapter),
            out,
            ExportSettings(**{"dtype": "float32", "verify": False, **settings}),
            progress=lambda *_: None,
        )
        return out, report

    return run
