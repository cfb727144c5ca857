"""The wheel holds every tracked module and all data, and works away from the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "adapters", "engine", "server")
SUFFIXES = set(".py .json .jinja .safetensors .cpp .hpp .html .css .js .svg".split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = _export(tmp_path_factory.mktemp("source"))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, source],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def _export(target: Path) -> Path:
    """A copy of what git tracks, so that stray files cannot help the build."""
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    names = archive.stdout.decode().rstrip("\0").split("\0")
    for name in names:
        origin, copy = ROOT / name, target / name
        if not origin.exists() and not origin.is_symlink():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            copy.symlink_to(origin.readlink())
        else:
            copy.write_bytes(origin.read_bytes())
    return target


def _tracked() -> set[str]:
    listing = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {
        f"multiflora/{name}"
        for name in listing.stdout.splitlines()
        if Path(name).suffix in SUFFIXES and (ROOT / name).exists()
    }


def test_the_wheel_contains_every_tracked_module_and_data_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert _tracked() - packed == set()


def test_the_wheel_contains_nothing_outside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"multiflora"}


def test_the_installed_package_imports_away_from_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import multiflora.server.cli, multiflora.engine.scheduler, multiflora.kernels.torch_ops\n"
        "import multiflora; print(multiflora.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout
