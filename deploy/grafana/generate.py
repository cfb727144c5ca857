"""Writes the dashboards: ``python -m deploy.grafana.generate``."""

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from .adapters import ADAPTERS
from .capacity import CAPACITY
from .overview import OVERVIEW
from .panel import Board, render
from .training import TRAINING

BOARDS: Final = (OVERVIEW, ADAPTERS, TRAINING, CAPACITY)
FOLDER: Final = Path(__file__).parent / "dashboards"


def path_of(board: Board) -> Path:
    return FOLDER / f"{board.uid.removeprefix('multiflora-')}.json"


def text_of(board: Board) -> str:
    """The dashboard as Grafana reads it."""
    return json.dumps(render(board).build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for board in BOARDS:
        path_of(board).write_text(text_of(board))
