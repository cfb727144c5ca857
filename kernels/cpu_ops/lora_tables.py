"""Factors and segments as the compiled core reads them: arrays of plain C structures.

The structures are those of ``csrc/lora.cpp``.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..ops import LoraFactors, LoraTables, Segment, Staging
from .core import DTYPES


class _Part(ctypes.Structure):
    _fields_ = (
        ("b", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("first_rank", ctypes.c_int64),
        ("first_column", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


class _Version(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("num_ranks", ctypes.c_int64),
        ("parts", ctypes.POINTER(_Part)),
        ("num_parts", ctypes.c_int64),
    )


class _Segment(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_int64),
        ("stop", ctypes.c_int64),
        ("slot", ctypes.c_int64),
        ("weight", ctypes.c_double),
    )


class ProjectionTable:
    """One projection's factors by slot, as tensors and, if it reads them, as the core's structures.

    ``dtype`` is that of all factors; None as long as there were none.
    """

    dtype: torch.dtype | None = None

    def __init__(self) -> None:
        self.factors: list[LoraFactors | None] = []
        self.versions = (_Version * 0)()
        self._parts: dict[int, ctypes.Array[_Part]] = {}

    def write(self, slot: int, factors: LoraFactors | None) -> None:
        if slot >= len(self.factors):
            self._grow(slot + 1)
        self.factors[slot] = factors
        self._parts.pop(slot, None)
        self.versions[slot] = _Version()
        if factors is None:
            return
        assert self.dtype in (None, factors.a.dtype), f"{self.dtype} and {factors.a.dtype}"
        self.dtype = factors.a.dtype
        if self.dtype in DTYPES:
            self._record(slot, factors)

    def _record(self, slot: int, factors: LoraFactors) -> None:
        parts = (_Part * len(factors.parts))(
            *(
                _Part(
                    part.b.data_ptr(),
                    part.b.shape[0],
                    part.first_rank,
                    part.first_column,
                    part.b.shape[1],
                    part.scale,
                )
                for part in factors.parts
            )
        )
        self._parts[slot] = parts
        self.versions[slot] = _Version(factors.a.data_ptr(), factors.a.shape[0], parts, len(parts))

    def _grow(self, size: int) -> None:
        self.factors.extend([None] * (size - len(self.factors)))
        grown = (_Version * size)()
        ctypes.memmove(grown, self.versions, ctypes.sizeof(self.versions))
        self.versions = grown


class CpuTables:
    """``LoraTables`` as one ``ProjectionTable`` per projection."""

    generation = 0
    max_rank = None
    tile = (1, 1)

    def __init__(self, num_projections: int) -> None:
        self._tables = [ProjectionTable() for _ in range(num_projections)]

    def write(self, slot: int, factors: Mapping[int, LoraFactors]) -> None:
        for index, table in enumerate(self._tables):
            table.write(slot, factors.get(index))

    def clear(self, slot: int) -> None:
        self.write(slot, {})

    def projection(self, index: int) -> ProjectionTable:
        return self._tables[index]


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """A step's segments, in both forms."""

    segments: Sequence[Segment]
    records: "ctypes.Array[_Segment]"


def make_lora_tables(widths: Sequence[Sequence[int]], device: torch.device) -> LoraTables:
    return CpuTables(len(widths))


def plan_lora(segments: Sequence[Segment], *, num_rows: int, staging: Staging) -> LoraPlan:
    records = (_Segment * len(segments))(*((s.start, s.stop, s.slot, s.weight) for s in segments))
    return LoraPlan(segments, records)
