"""A merge in a process of its own gives what it gives here, and its end is always told."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.adapters.child_process import SAME_PATH
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import WEIGHTS_NAME
from multiflora.adapters.merging import child
from multiflora.adapters.merging.child import MergeChild
from multiflora.adapters.merging.depth import Curve, Filter
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.process_message import MergeLimits, MergeRequest
from multiflora.adapters.merging.recipe import Recipe

MakeParent = Callable[..., Path]
SMALL = MergeLimits(memory_bytes=4 << 30, cpu_seconds=30, wall_seconds=60, num_threads=1)


def request(folders: list[Path], out: Path, limits: MergeLimits = SMALL, **recipe: Any) -> Any:
    return MergeRequest(
        tuple(map(str, folders)),
        tuple(folder.name for folder in folders),
        Recipe(num_parents=len(folders), **recipe),
        str(out),
        limits,
    )


def ignore(share: float) -> None: ...


def test_the_process_merges_as_this_one_does(make_parent: MakeParent, tmp_path: Path) -> None:
    parents = [make_parent("one"), make_parent("other", seed=1)]
    recipe = {
        "method": "slerp",
        "t": Curve((0.0, 1.0)),
        "filters": (Filter("mlp", Curve((0.3,))),),
    }
    shares: list[float] = []
    done = MergeChild(request(parents, tmp_path / "theirs", **recipe)).run(shares.append)
    ours = merge_folders(parents, Recipe(num_parents=2, **recipe))
    ours.write(tmp_path / "ours")
    theirs = (tmp_path / "theirs" / WEIGHTS_NAME).read_bytes()
    assert theirs == (tmp_path / "ours" / WEIGHTS_NAME).read_bytes()
    assert done.report == json.loads(json.dumps(ours.report.to_json()))
    assert done.provenance == json.loads(json.dumps(ours.report.provenance()))
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "different_base"),
        ({"method": "slerp", "filters": (Filter("nowhere", Curve((0.3,))),)}, "invalid_merge"),
    ],
)
def test_a_refusal_arrives_with_its_code(
    make_parent: MakeParent, tmp_path: Path, settings: dict[str, Any], code: str
) -> None:
    base = "other/base" if code == "different_base" else "some/base"
    parents = [make_parent("one"), make_parent("other", 1, base_model_name_or_path=base)]
    with pytest.raises(AdapterRejected) as caught:
        MergeChild(request(parents, tmp_path / "out", **settings)).run(ignore)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_disk_is_an_os_error(make_parent: MakeParent) -> None:
    with pytest.raises(OSError) as caught:
        MergeChild(request([make_parent("one")], Path("/proc/nowhere/out"))).run(ignore)
    assert caught.value.errno in (errno.ENOENT, errno.EACCES)


def test_a_result_over_the_limit_is_refused(make_parent: MakeParent, tmp_path: Path) -> None:
    limits = MergeLimits(max_bytes=4096, num_threads=1)
    with pytest.raises(AdapterRejected) as caught:
        MergeChild(request([make_parent("one")], tmp_path / "out", limits)).run(ignore)
    assert caught.value.code == "adapter_too_large"
    assert not (tmp_path / "out").exists()


DEATHS = {
    "signal": ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    "exit": ("import sys; sys.exit('gone')", "exit status 1"),
    "silence": ("pass", "no answer"),
    "nonsense": ("print('{')", "no answer"),
    "only progress": ('print(\'{"type": "Progress", "share": 1}\')', "no answer"),
    "memory": ("raise MemoryError", "exit status 1"),
}


@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize("case", DEATHS)
def test_a_process_that_dies_or_babbles_is_a_refusal(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    program, message = DEATHS[case]
    monkeypatch.setattr(child, "PROGRAM", program)
    with pytest.raises(AdapterRejected, match=message) as caught:
        MergeChild(request([make_parent("one")], tmp_path / "out")).run(ignore)
    assert caught.value.code == "merge_died"


@pytest.mark.usefixtures("no_child_left")
def test_a_process_that_hangs_is_ended(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PROGRAM", "import time; time.sleep(60)")
    limits = MergeLimits(wall_seconds=1)
    with pytest.raises(AdapterRejected) as caught:
        MergeChild(request([make_parent("one")], tmp_path / "out", limits)).run(ignore)
    assert caught.value.code == "merge_timeout"


def test_a_merge_can_be_ended_from_another_thread(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PROGRAM", "import time; time.sleep(60)")
    running = MergeChild(request([make_parent("one")], tmp_path / "out"))
    threading.Timer(0.3, running.kill).start()
    started = time.monotonic()
    with pytest.raises(AdapterRejected, match="SIGKILL"):
        running.run(ignore)
    assert time.monotonic() - started < 30
    with pytest.raises(AdapterRejected, match="before it began"):
        running.run(ignore)


def test_the_process_gives_up_what_it_does_not_need(
    make_parent: MakeParent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    script = (
        "import os, resource\n"
        "from multiflora.adapters.merging import merge_process\n"
        "from multiflora.adapters.merging.process_message import MergeLimits, Refused\n"
        "merge_process.restrict(MergeLimits(max_bytes=1 << 20, cpu_seconds=7, num_threads=3))\n"
        "names = 'DATA CPU FSIZE CORE'.split()\n"
        "limits = {n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[0] for n in names}\n"
        "found = [limits, sorted(os.environ), os.nice(0), 'torch' in sys.modules]\n"
        "merge_process._say(Refused('seen', json.dumps(found)))"
    )
    monkeypatch.setattr(child, "PROGRAM", SAME_PATH + "\n" + script)
    with pytest.raises(AdapterRejected) as caught:
        MergeChild(request([make_parent("one")], tmp_path / "out")).run(ignore)
    assert caught.value.code == "seen"
    limits, environment, niceness, has_torch = json.loads(str(caught.value))
    assert limits == {"DATA": 16 << 30, "CPU": 7, "FSIZE": 1 << 20, "CORE": 0}
    assert "HF_TOKEN" not in environment
    assert niceness > os.nice(0)
    assert not has_torch


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads is 0"):
        MergeLimits(num_threads=0)
