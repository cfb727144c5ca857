"""Builds the code that starts Triton's kernels, while there is a compiler and no GPU.

Triton builds it with the system's C compiler at the first use of a GPU and keeps it under a key of
its own source alone; what lies in ``TRITON_CACHE_DIR`` under that key is used as it is.
"""

import ctypes
import os
import re
import subprocess
import tempfile
from pathlib import Path

from triton.backends.nvidia import driver


def main() -> None:
    """Fill ``TRITON_CACHE_DIR``; prints what was built."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_LIBCUDA_PATH"] = scratch
        ctypes.CDLL(str(_stand_in(Path(scratch))), ctypes.RTLD_GLOBAL)
        driver.CudaUtils()
    print(*Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.so"))


def _stand_in(folder: Path) -> Path:
    """A library with the name of CUDA's driver and, for the linker, its functions' names."""
    path = folder / "libcuda.so.1"
    calls = re.findall(r"\b(cu[A-Z]\w*)\(", (Path(driver.dirname) / "driver.c").read_text())
    functions = "".join(f"void {name}(void) {{}}\n" for name in sorted(set(calls)))
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", path]
    subprocess.run(command, input=functions, text=True, check=True)
    return path


if __name__ == "__main__":
    main()
