"""``make check-security``: known vulnerabilities, dangerous code and a bill of materials.

The tools live in a virtual environment of their own, since none of them belongs beside a server.
What cannot run, such as the audit without a network, is named, and the exit status is 3 then;
it is 1 where something was found.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

from .tool_environment import ROOT, install, python_in

TOOLS: Final = ROOT / ".venv-security"
PINS: Final = ("pip-audit==2.10.1", "bandit==1.9.4", "cyclonedx-bom==7.5.0")
FOLDERS: Final = ("kernels", "adapters", "engine", "server")
# B104: both places only recognize a wildcard address. B310: the scheme is checked before. B608:
# statements are put together from constants, values are bound.
NOT_PROBLEMS: Final = "B104,B310,B608"
FOUND, COULD_NOT_RUN = 1, 3


def main() -> int:
    """Run everything that can run, and say what could not."""
    python = python_in(TOOLS)
    missing = [pin for pin in PINS if not install(TOOLS, pin)]
    audit = (python, "-m", "pip_audit", "-r", ROOT / "constraints.txt", "--no-deps")
    bom = ("environment", sys.executable, "--output-reproducible", "-o", ROOT / "sbom.cdx.json")
    outcomes = {
        "pip-audit": _run(*audit, "--disable-pip", missing=missing),
        "bandit": _run(
            *(python, "-m", "bandit", "-q", "-ll", "-s", NOT_PROBLEMS, "-r"),
            *(ROOT / folder for folder in FOLDERS),
            missing=missing,
        ),
        "cyclonedx-bom": _run(python, "-m", "cyclonedx_py", *bom, missing=missing),
    }
    for tool, outcome in outcomes.items():
        print(f"{tool:14} {outcome}")
    if "found problems" in outcomes.values():
        return FOUND
    return COULD_NOT_RUN if "could not run" in outcomes.values() else 0


def _run(*command: str | Path, missing: list[str]) -> str:
    """One word for how it ended; its own output is shown."""
    module = str(command[2]).replace("_", "-").replace("cyclonedx-py", "cyclonedx-bom")
    if any(pin.startswith(module) for pin in missing):
        return "could not run"
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    print(ended.stdout + ended.stderr, end="")
    if "could not be audited" in ended.stdout + ended.stderr:
        return "could not run"
    if ended.returncode == 0:
        return "passed"
    # pip-audit says with the same status that it found something and that it reached nobody.
    offline = ("ConnectionError", "Max retries", "Traceback", "connection", "timed out")
    is_offline = module == "pip-audit" and any(word in ended.stderr for word in offline)
    return "could not run" if is_offline or module == "cyclonedx-bom" else "found problems"


if __name__ == "__main__":
    sys.exit(main())
