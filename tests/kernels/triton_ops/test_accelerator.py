"""What a device lacks is said with the remedy, before anything is compiled."""

from types import SimpleNamespace

import pytest
import torch

from multiflora.kernels.triton_ops import accelerator
from multiflora.kernels.triton_ops.accelerator import Accelerator, obstacle
from multiflora.kernels.triton_ops.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a machine with a GPU, whose capability the test sets."""
    monkeypatch.setattr(accelerator, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    return monkeypatch


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "message"),
    [
        (CPU, torch.bfloat16, (9, 0), "need a CUDA device, not cpu; use --kernels cpu"),
        (CUDA, torch.float32, (9, 0), "not torch.float32; use --dtype bfloat16"),
        (CUDA, torch.float16, (7, 5), "Tesla T4 has compute capability 7.5, they need 8.0"),
    ],
)
def test_an_obstacle_is_named(compiled, device, dtype, capability, message: str) -> None:
    compiled.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert message in (obstacle(device, dtype) or "")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)])
def test_ampere_and_newer_have_none(compiled, capability: tuple[int, int]) -> None:
    compiled.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert obstacle(CUDA, torch.bfloat16) is None


@pytest.mark.parametrize(("major", "has_pdl"), [(8, False), (9, True)])
def test_kernels_overlap_from_hopper_on(compiled, major: int, has_pdl: bool) -> None:
    properties = SimpleNamespace(major=major, minor=0, multi_processor_count=132)
    compiled.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = Accelerator.open(CUDA)
    assert (found.has_pdl, found.num_multiprocessors, found.permute) == (has_pdl, 132, True)


def test_a_buffer_that_grew_leaves_the_old_one_alive_for_captured_graphs() -> None:
    workspace = Workspace(CPU)
    small = workspace.get("partials", 10, torch.float32)
    assert workspace.get("partials", 5, torch.float32) is small
    large = workspace.get("partials", 11, torch.float32)
    assert large.numel() == 20
    assert workspace.num_bytes == 4 * (10 + 20)
    assert not large.any()
