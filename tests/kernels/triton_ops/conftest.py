"""Kernels run where they can: on a GPU, else in Triton's interpreter on the CPU."""

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where kernels are compiled, whatever runs them needs the GPU."""
    if not torch.cuda.is_available():
        return
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def exact_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted dots round once from float64.

    The interpreter's own give a row other bits at another place in its tile; tensor cores do not.
    """
    from triton.runtime import interpreter

    def dot(builder, a, b, acc, input_precision, max_num_imprecise_acc):
        product = np.matmul(a.data, b.data, dtype=np.float64) + acc.data
        return interpreter.TensorHandle(product.astype(np.float32), acc.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
