"""The outside tools and their versions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..tool_environment import ROOT, install, python_in

FOLDER: Final = ROOT / ".venv-clients"
PINS: Final[Mapping[str, tuple[str, ...]]] = {
    "schemathesis": ("schemathesis==4.32.5",),
    "langchain-openai": ("langchain-openai==1.7.3",),
    "litellm": ("litellm==1.106.2",),
    "atheris": ("atheris==3.0.0",),
    # Without torch: the models are asked over HTTP.
    "lm-eval": ("lm-eval[api]==0.4.13", "transformers==5.23.0"),
}


class CouldNotInstall(Exception):
    """The packages cannot be had here, such as without a network."""


def python_of(tool: str) -> Path:
    """The Python that has ``tool``. Raises ``CouldNotInstall``."""
    folder = FOLDER / tool
    if not install(folder, *PINS[tool]):
        raise CouldNotInstall(f"{', '.join(PINS[tool])} could not be installed in {folder}")
    return python_in(folder)
