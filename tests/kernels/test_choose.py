"""A backend is chosen once, and an explicit wish is honoured or refused."""

import pytest
import torch

from multiflora.kernels import choose
from multiflora.kernels.choose import KernelsUnavailable, choose_ops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_auto_takes_the_cpu_backend_on_cpu() -> None:
    assert choose_ops("auto", CPU, torch.float32).NAME == "cpu"


@without_gpu
def test_auto_says_why_it_falls_back_to_torch_on_cuda(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_ops("auto", CUDA, torch.float32).NAME == "torch"
    assert "plain torch, several times slower: TRITON_INTERPRET is set" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        ("cpu", CUDA, "--device cpu"),
        ("mlx", CPU, "choose auto"),
    ],
)
def test_a_wish_that_cannot_be_met_is_an_error(
    wanted: str, device: torch.device, message: str
) -> None:
    with pytest.raises(KernelsUnavailable, match=message):
        choose_ops(wanted, device, torch.float32)


def test_triton_is_refused_with_the_obstacle_and_a_way_out(monkeypatch) -> None:
    monkeypatch.setattr(choose, "triton_obstacle", lambda *_: "the card is a toaster")
    with pytest.raises(KernelsUnavailable, match=r"the card is a toaster; or use --kernels torch"):
        choose_ops("triton", CUDA, torch.bfloat16)


def test_batch_invariance_is_refused_where_it_does_not_hold() -> None:
    assert choose_ops("cpu", CPU, torch.float32, batch_invariant=True).BATCH_INVARIANT
    with pytest.raises(KernelsUnavailable, match="not batch-invariant"):
        choose_ops("torch", CPU, torch.float32, batch_invariant=True)


def test_a_failed_self_check_is_an_error_even_for_auto(monkeypatch) -> None:
    from multiflora.kernels.triton_ops import self_check

    def fail(*_: object) -> None:
        raise self_check.SelfCheckFailed("kernel self-check 'look-up' differs")

    monkeypatch.setattr(choose, "triton_obstacle", lambda *_: None)
    monkeypatch.setattr(self_check, "check", fail)
    with pytest.raises(KernelsUnavailable, match="look-up' differs; use --kernels torch"):
        choose_ops("auto", CUDA, torch.bfloat16)


def test_a_chosen_triton_backend_has_passed_its_self_check() -> None:
    ops = choose_ops("triton", CPU, torch.float16, batch_invariant=True)
    assert (ops.NAME, ops.BATCH_INVARIANT) == ("triton", True)
    assert "batch-invariant" in ops.describe()
