"""What an engine's process is started with."""

import pytest

from multiflora.engine.transport import engine_environment


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert engine_environment()["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert engine_environment()["OMP_WAIT_POLICY"] == "active"


def test_everything_else_is_inherited_but_what_kernels_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    found = engine_environment()
    assert found["CUDA_VISIBLE_DEVICES"] == "3"
    assert found["TRITON_DEFAULT_FP_FUSION"] == "1"
