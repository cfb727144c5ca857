"""The committed dashboards are those that the code makes, and say what they show."""

import json

import pytest

from deploy.grafana.generate import BOARDS, FOLDER, path_of, text_of
from deploy.grafana.panel import SOURCE, Board


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_committed_dashboard_is_what_the_code_makes(board: Board) -> None:
    assert path_of(board).read_text() == text_of(board), "run make dashboards"


def test_no_other_dashboards_are_committed() -> None:
    assert set(FOLDER.iterdir()) == {path_of(board) for board in BOARDS}
    assert len({board.uid for board in BOARDS}) == len(BOARDS)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_panel_has_a_place_a_meaning_and_this_servers_data(board: Board) -> None:
    shown = json.loads(path_of(board).read_text())
    panels = [panel for panel in shown["panels"] if panel["type"] != "row"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(panels) == sum(len(row) for _, row in board.rows)
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {SOURCE.uid}
        assert all(target["expr"] for target in panel["targets"])
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids)


def test_the_data_source_is_the_provisioned_one() -> None:
    folder = FOLDER.parent / "provisioning" / "datasources"
    assert f"uid: {SOURCE.uid}\n" in (folder / "prometheus.yaml").read_text()
