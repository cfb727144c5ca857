"""Many small matrices from a file's bytes into one buffer, in one call.

A thread that copies them one by one asks for the interpreter between two of them, and whatever
runs beside it, such as a decode step, waits for its turn as often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu_ops.core import DTYPES, FILE_DTYPES, load_core


@dataclass(frozen=True, slots=True)
class MatrixCopy:
    """A matrix [num_rows, num_columns] of the target, which begins at element ``target``.

    Its values begin at byte ``source``, of any alignment, and lie there in ``dtype``, row by row of
    the target or, if ``is_transposed``, column by column.
    """

    source: int
    target: int
    num_rows: int
    num_columns: int
    dtype: torch.dtype
    is_transposed: bool = False

    @property
    def _shape(self) -> tuple[int, int]:
        rows, columns = self.num_rows, self.num_columns
        return (columns, rows) if self.is_transposed else (rows, columns)

    @property
    def source_stop(self) -> int:
        return self.source + self.num_rows * self.num_columns * self.dtype.itemsize

    @property
    def target_stop(self) -> int:
        return self.target + self.num_rows * self.num_columns

    def run(self, source: Tensor, target: Tensor) -> None:
        """By torch; as ``MatrixCopies.run`` of this one."""
        values = values_at(source, self.source, self.dtype, self._shape)
        place = target[self.target : self.target_stop].view(self.num_rows, self.num_columns)
        place.copy_(values.T if self.is_transposed else values)

    def record(self) -> tuple[int, ...]:
        """As the compiled core reads it."""
        if self.dtype not in FILE_DTYPES:
            raise ValueError(f"{self.dtype} is none of {FILE_DTYPES}")
        if min(self.source, self.target, self.num_rows, self.num_columns) < 0:
            raise ValueError(f"{self} lies before the start")
        kind = FILE_DTYPES.index(self.dtype)
        sizes = self.num_rows, self.num_columns
        return (self.source, self.target, *sizes, kind, int(self.is_transposed))


class MatrixCopies:
    """What has to be copied from any file of one layout; values are rounded to the target's type.

    Raises ``ValueError`` for types that are not in ``FILE_DTYPES`` and for negative places.
    """

    def __init__(self, copies: Sequence[MatrixCopy]) -> None:
        self._copies = tuple(copies)
        self._records = torch.tensor([copy.record() for copy in copies], dtype=torch.int64)
        self._source_stop = max((copy.source_stop for copy in copies), default=0)
        self._target_stop = max((copy.target_stop for copy in copies), default=0)

    def run(self, source: Tensor, target: Tensor) -> None:
        """source uint8 [bytes] -> target [elements] of a float type, both contiguous on the CPU.

        Raises ``ValueError`` if one of them is too short; nothing is copied then.
        """
        if self._source_stop > source.numel() or self._target_stop > target.numel():
            raise ValueError(
                f"{self._source_stop} bytes for {self._target_stop} elements are copied, not "
                f"{source.numel()} for {target.numel()}"
            )
        core = load_core()
        if core is not None and target.dtype in DTYPES:
            core.copy_matrices(source, self._records, target)
            return
        for copy in self._copies:
            copy.run(source, target)


def values_at(data: Tensor, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Values of ``dtype`` from byte ``start`` of data uint8; a view if they lie aligned."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = data[start : start + size]
    aligned = raw.clone() if raw.storage_offset() % dtype.itemsize else raw
    return aligned.view(dtype).view(torch.Size(shape))
