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
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
# MULTIFLORA_CORE_FLAGS adds to them, at build and at run time alike: `make sanitize` uses it.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wall"),
    *("-mavx2", "-mfma", *os.environ.get("MULTIFLORA_CORE_FLAGS", "").split()),
)


class CompilerMissing(RuntimeError):
    """No C++ compiler; the torch fallback works without the core, only slower."""


def core_path() -> Path:
    """Where the compiled core for these sources and this platform is, or would be.

    Beside the sources where that can be written (an editable install), else in the user's cache.
    """
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.[ch]pp")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    name = f"core-{sysconfig.get_platform()}-{digest.hexdigest()[:16]}.so"
    beside = SOURCES.parent / name
    if beside.exists() or os.access(SOURCES.parent, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "multiflora" / name


def build() -> Path:
    """Compile the core unless that is done; returns the library. Raises ``CompilerMissing``."""
    target = core_path()
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        raise CompilerMissing("no C++ compiler found; install g++ and run `make install` again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *FLAGS, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(made)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
        os.replace(made, target)
    return target


def main() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"CPU core: not built, {platform.machine()} is served by torch")
        return
    try:
        print(f"CPU core: {build()}")
    except CompilerMissing as error:
        print(f"CPU core: not built, {error}; torch serves instead, slower", file=sys.stderr)


if __name__ == "__main__":
    main()
