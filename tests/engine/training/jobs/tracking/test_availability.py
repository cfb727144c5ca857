"""Which sinks a job may have."""

import sys
from pathlib import Path

import pytest

from multiflora.engine.training.jobs.tracking import availability
from multiflora.engine.training.jobs.tracking.availability import (
    TrackingUnavailable,
    check_sinks,
    complaint_about,
    read_sinks,
)


def test_report_to_is_a_name_or_a_list() -> None:
    assert read_sinks("wandb") == ("wandb",)
    assert read_sinks(["trackio", "tensorboard", "trackio"]) == ("tensorboard", "trackio")
    assert read_sinks("none") == read_sinks([]) == read_sinks(["none"]) == ()


@pytest.mark.parametrize("given", ["mlflow", ["wandb", "x" * 100], 3, [["wandb"]], {"a": 1}])
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"none of tensorboard, wandb, trackio|name or a list"):
        read_sinks(given)


def test_a_sink_that_the_server_does_not_allow_is_refused_with_the_flag() -> None:
    with pytest.raises(TrackingUnavailable, match="--tracking tensorboard,wandb") as refused:
        check_sinks(["wandb"], allowed=("tensorboard",), param="integrations")
    assert refused.value.param == "integrations"


def test_a_missing_library_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    assert complaint_about("trackio", allowed=["trackio"]) == (
        "trackio is not installed here; run pip install trackio"
    )


def test_a_folder_of_the_name_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    # A library that another test has imported is found without looking at the path.
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert "not installed" in str(complaint_about("wandb", allowed=["wandb"]))
