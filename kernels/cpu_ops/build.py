"""Compiles ``csrc/`` with the system compiler, once, at install time: never during a start.

Run as a script: ``python kernels/cpu_ops/build.py``. It imports nothing of the project.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
# MULTIFLORA_CORE_FLAGS adds to them, at build and at run time alike: `make sanitize` uses it.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wall"),
    *os.environ.get("MULTIFLORA_CORE_FLAGS", "").split(),
)
_AVX2 = ("-mavx2", "-mfma")
# GCC takes the undefined operands of its own AVX-512 intrinsics for a mistake of their user.
_AVX512 = (*_AVX2, *"-mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-maybe-uninitialized".split())
# The same sources for every kind of processor; which one serves is decided when it is loaded.
TIERS = {"avx2": _AVX2, "avx512": _AVX512, "avx512-bf16": (*_AVX512, "-mavx512bf16")}


class CompilerMissing(RuntimeError):
    """No C++ compiler; the torch fallback works without the core, only slower."""


def core_path(tier: str) -> Path:
    """Where the compiled core of a tier for these sources and this platform is, or would be.

    Beside the sources where that can be written (an editable install), else in the user's cache.
    """
    digest = hashlib.sha256(" ".join((*FLAGS, *TIERS[tier])).encode())
    for source in sorted(SOURCES.glob("*.[ch]pp")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    name = f"core-{tier}-{sysconfig.get_platform()}-{digest.hexdigest()[:16]}.so"
    beside = SOURCES.parent / name
    if beside.exists() or os.access(SOURCES.parent, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "multiflora" / name


def build(tier: str) -> Path:
    """Compile a tier's core unless that is done; returns the library.

    Raises ``CompilerMissing``, and ``RuntimeError`` for a compiler that does not know the tier.
    """
    target = core_path(tier)
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        raise CompilerMissing("no C++ compiler found; install g++ and run `make install` again")
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = map(str, sorted(SOURCES.glob("*.cpp")))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *FLAGS, *TIERS[tier], *sources, "-o", str(made)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        os.replace(made, target)
    return target


def build_all() -> list[Path]:
    """Every tier's library, compiled side by side. Raises as ``build`` does."""
    with ThreadPoolExecutor(len(TIERS)) as compilers:
        return list(compilers.map(build, TIERS))


def main() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"CPU core: not built, {platform.machine()} is served by torch")
        return
    try:
        for library in build_all():
            print(f"CPU core: {library}")
    except CompilerMissing as error:
        print(f"CPU core: not built, {error}; torch serves instead, slower", file=sys.stderr)


if __name__ == "__main__":
    main()
