"""Scores of versions, row by row, as the trainer hands them to the gate. Imports no torch.

<job>/scores.json    `VersionScores`
"""

from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from multiflora.adapters import durable

SCORES_NAME: Final = "scores.json"
BaselineKind: TypeAlias = Literal["live", "start", "base"]


class RowScores(msgspec.Struct, frozen=True, kw_only=True):
    """Losses summed by row, and what they count: tokens of supervised rows, else 1.

    ``margins`` are rewards of chosen above rejected completions, ``chosen`` log-probabilities of
    chosen tokens, on average by row; only pairs have them.
    """

    losses: tuple[float, ...]
    weights: tuple[float, ...]
    margins: tuple[float, ...] = ()
    chosen: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The loss over all rows."""
        return sum(self.losses) / sum(self.weights)


class ScoredRows(msgspec.Struct, frozen=True, kw_only=True):
    """The same rows under the candidate and under the baseline."""

    candidate: RowScores
    baseline: RowScores


class VersionScores(msgspec.Struct, frozen=True, kw_only=True):
    """``baseline`` is the live version, else what the run went on from, else the bare base;
    ``digest`` is that version's.

    ``replay`` rows were held out. ``divergences`` are KL(baseline || candidate) in nats per answer
    token of each recent row.
    """

    baseline: BaselineKind
    digest: str | None = None
    validation: ScoredRows | None = None
    replay: ScoredRows | None = None
    divergences: tuple[float, ...] = ()

    def write(self, folder: Path) -> None:
        """Raises ``OSError``."""
        durable.make_folder(folder)
        durable.replace(folder / SCORES_NAME, msgspec.json.encode(self))


def read_scores(folder: Path) -> VersionScores | None:
    """None if nothing was scored. Raises ``ValueError`` for a damaged file, and ``OSError``."""
    try:
        return msgspec.json.decode((folder / SCORES_NAME).read_bytes(), type=VersionScores)
    except FileNotFoundError:
        return None
