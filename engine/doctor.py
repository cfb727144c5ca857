"""What this machine can run, and which kernels an engine would choose on it."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from multiflora.kernels.choose import KernelsUnavailable, choose_ops, triton_obstacle
from multiflora.kernels.cpu_ops import has_fast_bfloat16
from multiflora.kernels.cpu_ops.build import CompilerMissing, build_all

_PACKAGES = ("multiflora", "torch", "triton", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``is_problem`` is what keeps an engine from starting."""

    subject: str
    text: str
    is_problem: bool = False

    def render(self) -> str:
        return f"{'!' if self.is_problem else ' '} {self.subject:<12} {self.text}"


def examine(
    *, device: str = "auto", kernels: str = "auto", build_core: bool = False
) -> Iterator[Finding]:
    """Findings as they are made; the checks on a GPU take some seconds of compiling."""
    yield from _versions()
    if build_core:
        yield _build()
    found = torch.device("cuda" if _is_cuda(device) else "cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        yield Finding("device", "cuda: torch finds no CUDA device", is_problem=True)
        return
    yield from _device(found)
    dtype = torch.bfloat16 if found.type == "cuda" or has_fast_bfloat16() else torch.float32
    if found.type == "cuda":
        yield from _self_check(found, dtype)
    yield _choice(kernels, found, dtype)


def _is_cuda(device: str) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed")


def _build() -> Finding:
    try:
        return Finding("core", f"compiled: {', '.join(path.name for path in build_all())}")
    except CompilerMissing as error:
        return Finding("core", str(error), is_problem=True)


def _device(device: torch.device) -> Iterator[Finding]:
    if device.type == "cpu":
        natively = "native" if has_fast_bfloat16() else "emulated"
        yield Finding("device", f"cpu, {torch.get_num_threads()} threads, bfloat16 {natively}")
        return
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    yield Finding(
        "device",
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, "
        f"{free >> 20} of {total >> 20} MiB free",
    )
    yield Finding("driver", f"{_driver_version()}, CUDA {torch.version.cuda} in torch")


def _driver_version() -> str:
    try:
        with open("/proc/driver/nvidia/version") as file:
            return file.readline().partition("Kernel Module")[2].split("  ")[1].strip() or "unknown"
    except (OSError, IndexError):
        return "unknown"


def _self_check(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    obstacle = triton_obstacle(device, dtype)
    if obstacle is not None:
        yield Finding("triton", obstacle)
        return
    # Imported here: there may be no Triton.
    from multiflora.kernels.triton_ops.accelerator import Accelerator
    from multiflora.kernels.triton_ops.backend import TritonOps
    from multiflora.kernels.triton_ops.self_check import SelfCheckFailed, check

    for half in (torch.bfloat16, torch.float16):
        name = str(half).removeprefix("torch.")
        try:
            for result in check(TritonOps(Accelerator.open(device)), half):
                text = f"{result.name}: error {result.error:.1e}, at most {result.tolerance:.0e}"
                yield Finding(name, text)
        except SelfCheckFailed as error:
            yield Finding(name, str(error), is_problem=True)


def _choice(kernels: str, device: torch.device, dtype: torch.dtype) -> Finding:
    try:
        ops = choose_ops(kernels, device, dtype)
    except KernelsUnavailable as error:
        return Finding("kernels", str(error), is_problem=True)
    return Finding("kernels", f"{ops.NAME} ({ops.describe()})")
