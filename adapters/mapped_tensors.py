"""The tensors of a stored version, where they lie in the page cache."""

import mmap

import torch
from torch import Tensor

from .folder import WEIGHTS_NAME, AdapterFolder, open_regular
from .tensor_file import DTYPES


class MappedTensors:
    """Views of the weights file of a folder whose header was checked.

    Looking one up takes the interpreter a few microseconds, so that a version of hundreds of
    tensors is read beside steps without holding them up. Views keep the mapping alive.
    """

    def __init__(self, folder: AdapterFolder) -> None:
        with open_regular(folder.path / WEIGHTS_NAME) as file:
            # torch warns of memory that cannot be written; a write would stay in this process.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self._start = folder.data_start
        self._entries = {entry.name: entry for entry in folder.entries}

    def get(self, name: str) -> Tensor:
        """One tensor of the file's own dtype; ``KeyError`` if there is none of that name."""
        entry = self._entries[name]
        dtype = DTYPES[entry.dtype]
        raw = self._bytes[self._start + entry.start : self._start + entry.stop]
        # Any header is valid, whatever it does to the alignment of what follows.
        aligned = raw.clone() if raw.storage_offset() % dtype.itemsize else raw
        return aligned.view(dtype).view(entry.shape)
