"""`multiflora merge` from its arguments to its exit code and what it prints."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.registry import Registry
from multiflora.server.base_model import DEMO
from multiflora.server.cli import EXIT_STARTUP, EXIT_USAGE, main
from multiflora.server.commands import argument
from multiflora.server.settings import ServeSettings
from multiflora.server.settings_source import read_settings

PIRATE, JSON = (str(DEMO / "adapters" / name) for name in ("pirate", "json"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)`` -> exit code, stdout, stderr; names are looked up in a fresh folder."""

    def merge(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["merge", *arguments, "--data-dir", str(tmp_path / "data")])
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, printed.out, printed.err

    return merge


def test_two_folders_become_one(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run(PIRATE, JSON, "--method", "slerp", "--t", "0.5", "-o", str(out))
    assert code == 0
    assert "2 adapters merged" in printed
    assert "slerp" in printed
    assert f"multiflora serve --adapter out={out}" in printed
    with Parent(out) as merged, Parent(Path(PIRATE)) as parent:
        assert merged.base_name == parent.base_name
        assert set(parent.modules) <= set(merged.modules)


def test_weights_filters_rank_dtype_and_picture_arrive(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, picture = tmp_path / "out", tmp_path / "picture.png"
    options = ("--weights", "0.7", "-0.3", "--rank", "4", "--dtype", "float16")
    assert run(PIRATE, JSON, *options, "--picture", str(picture), "-o", str(out))[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with Parent(out) as merged:
        assert {module.rank for module in merged.modules.values()} == {4}
        assert str(merged.dtype) == "torch.float16"
    out = tmp_path / "filtered"
    options = ("--method", "slerp", "--t", "0,1", "--filter", "self_attn=0.3", "-o", str(out))
    assert "{'match': 'self_attn', 't': [0.3]}" in run(PIRATE, JSON, *options)[1]


def test_a_name_is_looked_up_where_a_server_keeps_it(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    from multiflora.engine.models.registry import load_model_config

    projections = load_model_config(DEMO / "base").projections()
    with_name = Registry.open(tmp_path / "data")
    assert with_name.store is not None
    digest = import_adapter(Path(PIRATE), projections=projections, store=with_name.store)
    with_name.publish("kept", digest)
    try:
        code, printed, complaint = run("kept", JSON, "-o", str(tmp_path / "out"))
    finally:
        with_name.close()
    assert code == 0, complaint
    assert "kept (weight 0.5" in printed
    assert inspect_adapter(AdapterFolder(tmp_path / "out"), projections)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((PIRATE, JSON, "--method", "mix"), EXIT_USAGE, "choose one of linear, cat, svd"),
        ((PIRATE, JSON, "--weights", "1"), EXIT_USAGE, "1 weights are given for 2 parents"),
        ((PIRATE, JSON, "--weights", "0", "0"), EXIT_USAGE, "all weights are 0"),
        ((PIRATE, JSON, "--rank", "0"), EXIT_USAGE, "rank is 0; it must be at least 1"),
        ((PIRATE, JSON, "--t", "0.5"), EXIT_USAGE, "t means nothing to linear"),
        ((PIRATE, JSON, "--method", "slerp", "--t", "2"), EXIT_USAGE, "t is 2.0"),
        ((PIRATE, JSON, "--method", "slerp", "--filter", "x=0.1"), EXIT_USAGE, "fits no module"),
        ((PIRATE, JSON, "--method", "ties", "--density", "0"), EXIT_USAGE, "density is 0.0"),
        ((PIRATE, JSON, "--picture", "picture.txt"), EXIT_USAGE, "no picture file"),
        ((PIRATE, "--picture", "picture.png"), EXIT_USAGE, "2 parents or more"),
        ((PIRATE, "nobody"), EXIT_STARTUP, "no adapter is named 'nobody'"),
        ((PIRATE, "./nowhere"), EXIT_STARTUP, "does not exist"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    reason: str,
) -> None:
    ended, printed, complaint = run(*arguments, "-o", str(tmp_path / "out"))
    assert (ended, printed) == (code, "")
    assert reason in complaint
    assert complaint.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_before_any_work(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, complaint = run(PIRATE, JSON, "-o", str(tmp_path))
    assert code == EXIT_STARTUP
    assert "exists; choose another folder" in complaint


def test_names_are_kept_where_the_server_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ServeSettings().data_dir == argument.DATA_DIR
    settings = {"MULTIFLORA_DATA_DIR": str(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setenv("MULTIFLORA_DATA_DIR", str(tmp_path))
        moved = importlib.reload(argument).DATA_DIR
    importlib.reload(argument)
    assert read_settings({}, settings).data_dir == moved == tmp_path
