"""A backend is chosen once, and an explicit wish is honoured or refused."""

import pytest

from multiflora.kernels.choose import choose_ops


def test_auto_takes_the_cpu_backend_on_cpu_and_torch_on_cuda() -> None:
    assert choose_ops("auto", "cpu").NAME == "cpu"
    assert choose_ops("auto", "cuda").NAME == "torch"


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [("cpu", "cuda", "--device cpu"), ("triton", "cpu", "auto"), ("mlx", "cpu", "choose auto")],
)
def test_a_wish_that_cannot_be_met_is_an_error(wanted: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_ops(wanted, device)
