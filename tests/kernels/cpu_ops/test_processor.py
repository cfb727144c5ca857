"""Which of the compiled cores a processor gets."""

from pathlib import Path

import pytest
import torch

from multiflora.kernels.cpu_ops import build, core, processor


@pytest.mark.parametrize(
    ("capability", "bfloat16", "expected"),
    [
        ("DEFAULT", False, ()),
        ("AVX2", False, ("avx2",)),
        # torch's own switch for a lower capability is obeyed.
        ("AVX2", True, ("avx2",)),
        ("AVX512", False, ("avx512", "avx2")),
        ("AVX512", True, ("avx512-bf16", "avx512", "avx2")),
    ],
)
def test_tiers_follow_the_capability(
    monkeypatch: pytest.MonkeyPatch, capability: str, bfloat16: bool, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(processor, "has_fast_bfloat16", lambda: bfloat16)
    assert processor.tiers() == expected
    assert set(expected) <= set(build.TIERS)


@pytest.mark.parametrize(("capability", "expected"), [("AVX2", False), ("AVX512", True)])
def test_bfloat16_units_that_torch_may_not_use_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capability: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)
    assert processor.has_fast_bfloat16.__wrapped__() is expected


def test_the_best_core_that_was_built_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not build.core_path("avx2").exists():
        pytest.skip("the core is not built here")
    monkeypatch.setattr(core, "tiers", lambda: ("avx512-bf16", "avx2"))
    paths = {"avx512-bf16": tmp_path / "missing.so", "avx2": build.core_path("avx2")}
    monkeypatch.setattr(core, "core_path", paths.__getitem__)
    found = core.load_core.__wrapped__()
    assert found is not None
    assert (found.tier, found.multiplies_bfloat16) == ("avx2", False)
