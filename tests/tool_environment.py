"""Virtual environments for tools that do not belong beside a server: their pins fight ours."""

import subprocess
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


def install(folder: Path, *pins: str) -> bool:
    """Bring ``pins`` into the environment, made where there is none; whether that worked."""
    if not python_in(folder).exists():
        venv.create(folder, with_pip=True)
    command = [python_in(folder), "-m", "pip", "install", "--quiet", *pins]
    return subprocess.run(command, capture_output=True).returncode == 0
