"""What an export measures at one linear: how large the delta is, and what rounding does to it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRecord:
    """``norm`` is |D|; ``lost`` is -<stored - exact, D>, what rounding took of its direction."""

    rank: int
    norm: float
    lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord:
    """Frobenius norms of one linear: W, W + D, and stored - (W + D)."""

    path: str
    base_norm: float
    exact_norm: float
    error_norm: float
    delta: DeltaRecord | None

    def as_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"rounding_error": _ratio(self.error_norm, self.exact_norm)}
        if self.delta is not None:
            values |= {
                "rank": self.delta.rank,
                "delta_norm": self.delta.norm,
                "relative_delta": _ratio(self.delta.norm, self.base_norm),
                "delta_kept": _kept(self.delta.lost, self.delta.norm**2),
                "delta_error": _ratio(self.error_norm, self.delta.norm),
            }
        return values


def measure(
    path: str, *, base_norm: float, exact: Tensor, stored: Tensor, delta: Tensor | None, rank: int
) -> ModuleRecord:
    """Compare ``stored`` with ``exact`` = W + ``delta``, all [N, K]; exact is float32."""
    # In place: these are the largest temporaries of an export.
    error = stored.to(torch.float32, copy=True).sub_(exact)
    return ModuleRecord(
        path=path,
        base_norm=base_norm,
        exact_norm=norm(exact),
        error_norm=norm(error),
        delta=None
        if delta is None
        else DeltaRecord(rank=rank, norm=norm(delta), lost=-_inner(error, delta)),
    )


def summarize(records: Iterable[ModuleRecord]) -> dict[str, Any]:
    """All adapted modules as if they were one: ``delta_kept`` is <stored - W, D> / <D, D>.

    ``delta_error`` is |stored - (W + D)| / |D|, ``relative_delta`` |D| / |W|; null without a delta.
    """
    adapted = [(record, record.delta) for record in records if record.delta is not None]
    squared = sum(delta.norm**2 for _, delta in adapted)
    base = math.sqrt(sum(record.base_norm**2 for record, _ in adapted))
    error = math.sqrt(sum(record.error_norm**2 for record, _ in adapted))
    exact = math.sqrt(sum(record.exact_norm**2 for record, _ in adapted))
    return {
        "adapted_modules": len(adapted),
        "relative_delta": _ratio(math.sqrt(squared), base),
        "rounding_error": _ratio(error, exact),
        "delta_kept": _kept(sum(delta.lost for _, delta in adapted), squared),
        "delta_error": _ratio(error, math.sqrt(squared)),
    }


def norm(matrix: Tensor) -> float:
    """Frobenius norm, summed row by row in float32 and over the rows in float64."""
    rows = torch.linalg.vector_norm(matrix, dim=1)
    return float(torch.linalg.vector_norm(rows.double()))


def _inner(left: Tensor, right: Tensor) -> float:
    return float(torch.linalg.vecdot(left, right).double().sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _kept(lost: float, squared: float) -> float | None:
    return 1 - lost / squared if squared else None
