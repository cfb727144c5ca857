"""The core for AVX-512 on processors without it: the same sources, its instructions emulated."""

import subprocess
from pathlib import Path

import pytest

from multiflora.kernels.cpu_ops import build
from multiflora.kernels.cpu_ops.core import Core, load_core

_EMULATION = Path(__file__).parent / "emulation" / "avx512.hpp"
_FLAGS = ("-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-mavx2")
_QUIET = ("-mfma", "-Wno-psabi", "-Wno-ignored-attributes")


@pytest.fixture(scope="session")
def core() -> Core:
    """The core that serves on this machine."""
    core = load_core()
    if core is None:
        pytest.skip("the core is not built here")
    return core


@pytest.fixture(scope="session")
def emulated_core(core: Core, tmp_path_factory: pytest.TempPathFactory) -> Core:
    path = tmp_path_factory.mktemp("core") / "emulated.so"
    emulation = ("-DMULTIFLORA_EMULATED", "-include", str(_EMULATION))
    sources = map(str, sorted(build.SOURCES.glob("*.cpp")))
    subprocess.run(["g++", *_FLAGS, *_QUIET, *emulation, *sources, "-o", str(path)], check=True)
    return Core(path, "emulated AVX-512")


@pytest.fixture(scope="session")
def avx2_core(core: Core) -> Core:
    """The core of the oldest processors that have one."""
    return Core(build.build("avx2"), "avx2")
