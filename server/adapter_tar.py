"""A stored version as a tar of its PEFT folder, made while it is sent."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, Final, Self

from multiflora.adapters.folder import (
    CONFIG_NAME,
    TEMPLATE_NAME,
    WEIGHTS_NAME,
    AdapterFolder,
    open_regular,
)

_CHUNK_BYTES: Final = 1 << 18
# The end of a tar: two empty blocks.
_END: Final = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class _Member:
    header: bytes
    file: BinaryIO
    num_bytes: int

    @property
    def num_padding(self) -> int:
        return -self.num_bytes % tarfile.BLOCKSIZE


class AdapterTar:
    """Holds the files open: the version may be collected meanwhile."""

    def __init__(self, members: list[_Member], files: ExitStack) -> None:
        self._members = members
        self._files = files

    @classmethod
    def open(cls, folder: AdapterFolder, *, name: str, created: int) -> Self:
        """The version's files under a folder ``name``; ``created`` is a Unix time."""
        with ExitStack() as files:
            members = []
            beside = () if folder.template is None else (TEMPLATE_NAME,)
            for part in (CONFIG_NAME, WEIGHTS_NAME, *beside):
                file = files.enter_context(open_regular(folder.path / part))
                size = file.seek(0, 2)
                file.seek(0)
                info = tarfile.TarInfo(f"{name}/{part}")
                info.size, info.mtime, info.mode = size, created, 0o644
                members.append(_Member(info.tobuf(), file, size))
            return cls(members, files.pop_all())

    @property
    def num_bytes(self) -> int:
        contents = sum(
            len(member.header) + member.num_bytes + member.num_padding for member in self._members
        )
        return contents + len(_END)

    def close(self) -> None:
        self._files.close()

    def chunks(self) -> Iterator[bytes]:
        with self._files:
            for member in self._members:
                yield member.header
                while chunk := member.file.read(_CHUNK_BYTES):
                    yield chunk
                yield bytes(member.num_padding)
            yield _END
