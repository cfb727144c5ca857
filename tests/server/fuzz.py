"""atheris on one target: ``python -m tests.server.fuzz body CORPUS -max_total_time=60``."""

import importlib
import sys
from typing import Any

# Only its own environment has it, and the types that checkers know of it are not its own.
atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["multiflora.server", "multiflora.engine.text", "jinja2"]):
    from .fuzz_target import TARGETS


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
