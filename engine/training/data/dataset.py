"""A prepared data set on the disk: written once, row by row, and read without being held in memory.

    <folder>/tokens.bin    int32: the ids of all items, one after the other
             marks.bin     a byte per token: 0 is only read, 1 is learnt, 2 counts as the prompt
             index.bin     int64 x 5 per item: where it starts, the lengths of its parts, its line
             keys.bin      uint64 x 4 per row: its keys and its line, to find leaks
             dataset.json  `DatasetInfo`

Numbers are in the byte order of the machine. The parts of an example are one; those of a preference
are prompt, chosen and rejected, and it has no marks. The folder is whole or absent.
"""

import hashlib
import mmap
import os
import shutil
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec
import numpy as np

from multiflora.adapters import durable

from ...errors import EngineError
from ..error import InvalidTrainingData
from ..example import Example, Preference
from .config import DataConfig
from .report import Report
from .row_key import RowKey

_TOKENS, _MARKS, _INDEX, _KEYS = "tokens.bin", "marks.bin", "index.bin", "keys.bin"
_INFO: Final = "dataset.json"
_ITEM: Final = struct.Struct("=5q")
_KEY: Final = struct.Struct("=4Q")
_READ, _LEARNT, _ASKED = 0, 1, 2
_TOKEN_BYTES: Final = 4


class DatasetDamaged(EngineError):
    """A folder that is no whole data set."""

    code = "dataset_damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """``fingerprint`` is that of the text side it was rendered for, to compare with serving's;
    ``digest`` is a sha256 of the items: equal data, equal digest.
    """

    config: DataConfig
    fingerprint: str
    digest: str
    num_items: int
    report: Report


class DatasetWriter:
    """Makes the folder when it is told to ``finish``; without that, nothing is left of it."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        if folder.exists():
            raise FileExistsError(f"{folder} exists; open it, or remove it first")
        self._folder = folder
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._config = config
        self._digest = hashlib.sha256(config.method.encode())
        self._num_items = self._num_tokens = 0
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        durable.make_folder(self._partial.parent)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()
        self._opened.callback(shutil.rmtree, self._partial, ignore_errors=True)
        names = (_TOKENS, _MARKS, _INDEX, _KEYS)
        self._tokens, self._marks, self._index, self._keys = map(self._create, names)
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def add(self, item: Example | Preference) -> None:
        if isinstance(item, Example):
            parts = [len(item.ids), 0, 0]
            self._write(item.ids)
            marks = bytes(map(_mark, item.weights))
            self._marks.write(marks)
            self._digest.update(marks)
        else:
            parts = [len(item.prompt), len(item.chosen), len(item.rejected)]
            self._write(item.prompt + item.chosen + item.rejected)
        entry = _ITEM.pack(self._num_tokens, *parts, item.line)
        self._index.write(entry)
        self._digest.update(entry)
        self._num_tokens += sum(parts)
        self._num_items += 1

    def add_key(self, key: RowKey, line: int) -> None:
        self._keys.write(_KEY.pack(key.exact, key.near, key.prompt, line))

    def finish(self, report: Report, *, fingerprint: str) -> None:
        """Make the folder appear, durably. Raises ``OSError``."""
        info = DatasetInfo(
            config=self._config,
            fingerprint=fingerprint,
            digest=self._digest.hexdigest(),
            num_items=self._num_items,
            report=report,
        )
        for file in (self._tokens, self._marks, self._index, self._keys):
            file.flush()
            os.fsync(file.fileno())
        durable.write(self._partial / _INFO, msgspec.json.encode(info))
        durable.sync(self._partial)
        os.rename(self._partial, self._folder)
        durable.sync(self._folder.parent)

    def _create(self, name: str) -> BinaryIO:
        return self._opened.enter_context(open(self._partial / name, "xb"))

    def _write(self, ids: Sequence[int]) -> None:
        content = array("i", ids).tobytes()
        self._tokens.write(content)
        self._digest.update(content)


class PreparedDataset:
    """A sequence of ``Example`` or, for dpo, of ``Preference``; safe to read from any thread."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder = folder
        self.info = info
        self._weights = (0.0, 1.0, info.config.prompt_loss_weight)
        self._opened = ExitStack()
        self._tokens, self._marks, self._index = map(self._map, (_TOKENS, _MARKS, _INDEX))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises ``DatasetDamaged`` for anything but a whole data set."""
        try:
            info = msgspec.json.decode((folder / _INFO).read_bytes(), type=DatasetInfo)
            dataset = cls(folder, info)
            dataset._check_sizes()
        except (OSError, ValueError) as error:
            raise DatasetDamaged(
                f"{folder} is no whole data set ({error}); prepare the file again"
            ) from None
        return dataset

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.info.num_items

    def __getitem__(self, place: int) -> Example | Preference:
        start, first, second, third, line = self._entry(place)
        ids = tuple(self._ids(start, first + second + third))
        if self.info.config.method == "dpo":
            chosen, rejected = ids[first : first + second], ids[first + second :]
            return Preference(ids[:first], chosen, rejected, line)
        marks = self._marks[start : start + first]
        return Example(ids, tuple(map(self._weights.__getitem__, marks)), line)

    def __iter__(self) -> Iterator[Example | Preference]:
        return (self[place] for place in range(len(self)))

    def num_tokens(self, place: int) -> int:
        """All tokens of an item, without reading them."""
        _, first, second, third, _ = self._entry(place)
        return first + second + third

    def check_tokens(self, vocab_size: int) -> None:
        """Raise ``InvalidTrainingData`` for a token that is not below ``vocab_size``.

        Looking such a token up would end an accelerator's whole process.
        """
        window = 1 << 20
        ids = np.frombuffer(self._tokens, np.int32)
        for start in range(0, len(ids), window):
            part = ids[start : start + window]
            (places,) = ((part < 0) | (part >= vocab_size)).nonzero()
            if len(places):
                line, token = self._line_of(start + int(places[0])), part[places[0]]
                del ids, part  # or the mapping could not be closed
                raise InvalidTrainingData(
                    f"line {line} has the token {token}, the base knows 0 to {vocab_size - 1}; "
                    "prepare the file again with the tokenizer of this base"
                )

    def row_keys(self) -> Iterator[tuple[RowKey, int]]:
        """The keys and lines of all rows."""
        with open(self.folder / _KEYS, "rb") as file:
            while entry := file.read(_KEY.size):
                exact, near, prompt, line = _KEY.unpack(entry)
                yield RowKey(exact, near, prompt), line

    def _line_of(self, token: int) -> int:
        """The line of the item that has the ``token``-th token of all."""
        after = bisect_right(range(len(self)), token, key=lambda place: self._entry(place)[0])
        return self._entry(after - 1)[-1]

    def _entry(self, place: int) -> tuple[int, int, int, int, int]:
        if not 0 <= place < len(self):
            raise IndexError(f"item {place} of {len(self)}")
        return _ITEM.unpack_from(self._index, place * _ITEM.size)

    def _ids(self, start: int, num_tokens: int) -> Sequence[int]:
        end = start + num_tokens
        return array("i", self._tokens[start * _TOKEN_BYTES : end * _TOKEN_BYTES])

    def _map(self, name: str) -> mmap.mmap | bytes:
        with open(self.folder / name, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""  # which cannot be mapped
            return self._opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _check_sizes(self) -> None:
        if len(self._index) != len(self) * _ITEM.size or not len(self):
            raise ValueError("the index has another length")
        start, *parts, _ = self._entry(len(self) - 1)
        num_tokens = start + sum(parts)
        num_marks = 0 if self.info.config.method == "dpo" else num_tokens
        if len(self._tokens) != num_tokens * _TOKEN_BYTES or len(self._marks) != num_marks:
            raise ValueError("the tokens have another length")


def _mark(weight: float) -> int:
    if weight == 0.0:
        return _READ
    return _LEARNT if weight == 1.0 else _ASKED
