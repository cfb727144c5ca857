"""The gate: what passes is what was checked; no adapter can hang, burst or outlive its check."""

import asyncio
import io
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from multiflora.adapters import gate, intake
from multiflora.adapters.archive import ArchiveLimits
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.adapters.gate import check_adapter
from multiflora.adapters.inspection import CheckedAdapter, GateLimits, inspect_source
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection

# Every way to split the path into non-empty parts is tried before this fails.
BACKTRACKING = r"(.+)+!"


@pytest.fixture
def check(projections: tuple[Projection, ...], tmp_path: Path) -> Callable[..., CheckedAdapter]:
    """``check(source, **limits)`` runs the gate with a fresh staging folder."""
    num_checks = 0

    def run(source: Path, **limits: Any) -> CheckedAdapter:
        nonlocal num_checks
        num_checks += 1
        staged = tmp_path / f"staged-{num_checks}"
        staged.mkdir()
        return check_adapter(source, staged, projections=projections, limits=GateLimits(**limits))

    return run


def tar(folder: Path, mode: Any, *, top: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        archive.add(folder, arcname=top or ".")
    return packed.getvalue()


def zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    return packed.getvalue()


def test_a_folder_and_its_archives_have_one_digest(
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
    check: Callable[..., CheckedAdapter],
    tmp_path: Path,
) -> None:
    folder = write_adapter()
    (folder / "README.md").write_text("# an adapter")
    (tmp_path / "data").mkdir()
    store = AdapterStore(tmp_path / "data")
    digest = import_adapter(folder, projections=projections, store=store)
    for content in (
        tar(folder, "w:"),
        tar(folder, "w:gz"),
        tar(folder, "w:", top="my-adapter"),
        zipped(folder),
    ):
        (tmp_path / "packed").write_bytes(content)
        assert check(tmp_path / "packed") == CheckedAdapter(
            digest=digest,
            num_bytes=(folder / WEIGHTS_NAME).stat().st_size,
            rank=4,
            num_modules=4,
            modules=("down_proj", "q_proj"),
        )
        assert import_adapter(tmp_path / "packed", projections=projections, store=store) == digest


def test_a_linked_folder_is_followed_but_no_link_in_it(
    write_adapter: Callable[..., Path], check: Callable[..., CheckedAdapter], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(write_adapter())
    assert check(tmp_path / "link").rank == 4


def test_what_is_stored_is_what_was_checked(
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The source is replaced in the moment after the check."""
    folder = write_adapter()
    checked_bytes = (folder / WEIGHTS_NAME).read_bytes()

    def check_then_replace(*arguments: Any, **options: Any) -> CheckedAdapter:
        checked = check_adapter(*arguments, **options)
        (folder / WEIGHTS_NAME).write_bytes(b"\xff" * 100)
        (folder / CONFIG_NAME).write_text("{}")
        return checked

    monkeypatch.setattr(intake, "check_adapter", check_then_replace)
    (tmp_path / "data").mkdir()
    store = AdapterStore(tmp_path / "data")
    kept = store.open(import_adapter(folder, projections=projections, store=store))
    assert (kept.path / WEIGHTS_NAME).read_bytes() == checked_bytes
    assert kept.config["r"] == 4


def test_a_refusal_leaves_the_store_empty(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(AdapterRejected, match="rank 4, over 3"):
        import_adapter(
            write_adapter(),
            projections=projections,
            store=AdapterStore(tmp_path / "data"),
            limits=GateLimits(max_rank=3),
        )
    assert list((tmp_path / "data" / "adapters").iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"target_modules": BACKTRACKING}, id="target"),
        pytest.param({"exclude_modules": BACKTRACKING}, id="exclude", marks=pytest.mark.full),
        pytest.param({"rank_pattern": {BACKTRACKING: 4}}, id="rank"),
        pytest.param({"alpha_pattern": {BACKTRACKING: 4}}, id="alpha", marks=pytest.mark.full),
        pytest.param(
            {"layers_pattern": "(?:.+)+!", "layers_to_transform": [0]},
            id="layers",
            marks=pytest.mark.full,
        ),
    ],
)
@pytest.mark.usefixtures("no_child_left")
def test_a_pattern_that_backtracks_ends_with_its_cpu_time(
    config: dict[str, Any], write_adapter: Callable[..., Path], check: Callable[..., CheckedAdapter]
) -> None:
    with pytest.raises(AdapterRejected, match="1 s of CPU time") as caught:
        check(write_adapter(**config), cpu_seconds=1)
    assert caught.value.code == "check_timeout"


def test_a_pattern_that_is_slow_every_time_is_refused(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], tmp_path: Path
) -> None:
    """The engine would match it again at every load."""
    folder = write_adapter(exclude_modules=r".*.*.*.*!")
    with pytest.raises(AdapterRejected, match="list plain module names") as caught:
        inspect_source(
            folder, tmp_path, projections=projections, limits=GateLimits(match_milliseconds=1)
        )
    assert caught.value.code == "slow_pattern"


@pytest.mark.usefixtures("no_child_left")
def test_a_check_that_hangs_is_killed_and_reaped(
    write_adapter: Callable[..., Path], check: Callable[..., CheckedAdapter]
) -> None:
    folder = write_adapter(target_modules=BACKTRACKING)
    started = time.monotonic()
    with pytest.raises(AdapterRejected, match="took over 1 s") as caught:
        check(folder, wall_seconds=1)
    assert caught.value.code == "check_timeout"
    assert time.monotonic() - started < 3


def test_a_check_that_needs_too_much_memory_is_refused(
    write_adapter: Callable[..., Path], check: Callable[..., CheckedAdapter]
) -> None:
    """A header of 4 MB, within its limit, becomes 200 MB of objects."""
    folder = write_adapter()
    header = b'{"x":[' + b"[{}]," * 800_000 + b"0]}"
    (folder / WEIGHTS_NAME).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdapterRejected, match="bytes of memory") as caught:
        check(folder, memory_bytes=96 << 20)
    assert caught.value.code == "check_out_of_memory"
    with pytest.raises(AdapterRejected, match="tensor x is malformed"):
        check(folder)
    assert check(write_adapter("good"), memory_bytes=64 << 20).rank == 4


DEATHS = {
    "killed": ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    "segmentation fault": ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
    "exit": ("import sys; sys.exit('gone')", "exit status 1"),
    "silence": ("pass", "no answer"),
    "nonsense": ("print('{')", "no answer"),
    "another answer": ('print(\'{"type": "Accepted", "checked": 1}\')', "no answer"),
    "flood": ("print('x' * 10**7)", "check of the adapter"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_a_check_that_dies_or_babbles_is_a_refusal(
    case: str,
    write_adapter: Callable[..., Path],
    check: Callable[..., CheckedAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, message = DEATHS[case]
    monkeypatch.setattr(gate, "_PROGRAM", program)
    num_descriptors = psutil.Process().num_fds()
    with pytest.raises(AdapterRejected, match=message) as caught:
        check(write_adapter())
    assert caught.value.code == "check_died"
    assert psutil.Process().num_fds() == num_descriptors


def test_a_fault_of_the_disk_is_not_the_adapters(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="adapter"):
        check_adapter(write_adapter(), tmp_path / "missing", projections=projections)


def test_the_check_sees_no_secrets_and_cannot_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    script = (
        "import json, os, resource, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        "from multiflora.adapters.gate_process import restrict\n"
        "from multiflora.adapters.inspection import GateLimits\n"
        "restrict(GateLimits(cpu_seconds=7, memory_bytes=1 << 28))\n"
        "names = 'AS CPU NOFILE FSIZE NPROC CORE'.split()\n"
        "limits = {n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in names}\n"
        "heavy = {'torch', 'transformers', 'numpy', 'msgspec', 'asyncio'} & set(sys.modules)\n"
        "print(json.dumps([limits, list(os.environ), list(heavy), os.getcwd()]))"
    )
    monkeypatch.setattr(gate, "_PROGRAM", script)
    with open("/dev/null", "rb") as nothing, open("/dev/null", "wb") as sink:
        answer, status = gate._run(nothing, sink, GateLimits())
    limits, environment, heavy, folder = json.loads(answer)
    assert status == 0
    assert {name: soft for name, (soft, _) in limits.items()} == {
        "AS": 1 << 28,
        "CPU": 7,
        "NOFILE": 32,
        "FSIZE": ArchiveLimits().max_unpacked_bytes,
        "NPROC": 0,
        "CORE": 0,
    }
    assert "HF_TOKEN" not in environment
    assert (heavy, folder) == ([], "/")


@pytest.mark.usefixtures("no_child_left")
def test_checks_from_threads_of_an_event_loop_do_not_disturb_each_other(
    write_adapter: Callable[..., Path], check: Callable[..., CheckedAdapter], tmp_path: Path
) -> None:
    good, bad = write_adapter("good"), write_adapter("bad", lora_alpha=float("inf"))

    async def check_all() -> list[CheckedAdapter | BaseException]:
        checks = [asyncio.to_thread(check, source) for source in (good, bad) * 4]
        return await asyncio.gather(*checks, return_exceptions=True)

    results = asyncio.run(check_all())
    assert len(set(results[::2])) == 1
    assert all(isinstance(result, AdapterRejected) for result in results[1::2])


def test_the_same_code_checks_as_asks(tmp_path: Path) -> None:
    """A caller that found the package on a path of its own hands that path to the check."""
    root = Path(gate.__file__).resolve().parent.parent
    script = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from multiflora.adapters import gate\n"
        "gate._PROGRAM = 'import json, sys; sys.path[:] = json.loads(sys.argv[1]); '"
        "'import multiflora; print(multiflora.__file__)'\n"
        "with open('/dev/null', 'r+b') as nothing:\n"
        "    print(gate._run(nothing, nothing, gate.GateLimits())[0].decode())"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == root / "multiflora" / "__init__.py"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_rank": 0}, "max_rank is 0"),
        ({"wall_seconds": -1}, "wall_seconds is -1"),
        ({"memory_bytes": 1 << 20}, "the check itself needs"),
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateLimits(**limits)
