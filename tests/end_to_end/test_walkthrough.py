"""docs/walkthrough.md, as a newcomer types it: in one shell, on a server with the demo."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text()
# A command, and what it prints.
STEPS = re.findall(r"```bash\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
MARK = "-- end of a step --"


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Any]) -> Any:
    return start_server("--device", "cpu", "--kv-cache-memory", "32MiB")


def walk(url: str, folder: Path, steps: list[tuple[str, str]]) -> list[str]:
    """What each of ``steps`` printed, run in one shell in a folder like the clone."""
    (folder / "engine").symlink_to(ROOT / "engine")
    script = f"\necho '{MARK}'\n".join(command for command, _ in steps)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", url)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    return [text.strip("\n") for text in ran.stdout.split(f"{MARK}\n")]


def test_every_command_is_followed_by_what_it_prints() -> None:
    assert PAGE.count("```bash\n") == PAGE.count("```text\n") == len(STEPS)
    # What remains is what starts the server; the test starts it alike.
    others = re.findall(r"^```(?!bash|text)\w*\n(.+?)```$", PAGE, re.DOTALL | re.MULTILINE)
    assert [other for other in others if other.strip()][:1] == ["make run\n"]
    makefile = (ROOT / "Makefile").read_text()
    assert "\nrun: install\n\t$(BIN)/multiflora serve\n" in makefile


def test_all_of_it_prints_what_the_page_says(server: Any, tmp_path: Path) -> None:
    assert walk(server.url, tmp_path, STEPS) == [printed.strip("\n") for _, printed in STEPS]
