"""The tensors of a stored version, where they lie in the page cache."""

import mmap
from functools import cached_property

import torch
from torch import Tensor

from multiflora.kernels.matrix_copy import values_at

from .folder import WEIGHTS_NAME, AdapterFolder, TensorEntry, open_regular
from .tensor_file import DTYPES


class MappedTensors:
    """Views of the weights file of a folder whose header was checked.

    ``file`` uint8 [bytes] is all of it. Views keep the mapping alive.
    """

    def __init__(self, folder: AdapterFolder) -> None:
        with open_regular(folder.path / WEIGHTS_NAME) as file:
            # torch warns of memory that cannot be written; a write would stay in this process.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.file = torch.frombuffer(mapped, dtype=torch.uint8)
        self._folder = folder

    def get(self, name: str) -> Tensor:
        """One tensor of the file's own dtype; ``KeyError`` if there is none of that name."""
        entry = self._entries[name]
        start = self._folder.data_start + entry.start
        return values_at(self.file, start, DTYPES[entry.dtype], entry.shape)

    @cached_property
    def _entries(self) -> dict[str, TensorEntry]:
        return {entry.name: entry for entry in self._folder.entries}
