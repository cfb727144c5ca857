"""A strict, forward-only tar reader for files that strangers made.

Python's ``tarfile`` reads a member's metadata whole, whatever its size, follows chains of it
recursively, and understands links and sparse files. This reads plain files and folders only, with
metadata of bounded size, and decodes single header blocks with ``tarfile.TarInfo``.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .error import AdapterRejected

_BLOCK = tarfile.BLOCKSIZE
_MAX_METADATA_BYTES = 64 << 10
_SKIP_BYTES = 64 << 10
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_UNSAFE_KEYS = ("size", "linkpath", "GNU.sparse.")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file or folder; ``read`` gives the next bytes, at most as many as asked, then ``b""``."""

    name: str
    is_folder: bool
    read: Callable[[int], bytes]


class TarStream:
    """Iterates over the members of the tar whose bytes ``read`` gives.

    Raises ``AdapterRejected`` for a malformed archive and for a member that is no file or folder.
    A member can be read until the next one is asked for.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._source = read
        self._content_bytes = 0
        self._padding_bytes = 0

    def __iter__(self) -> Iterator[TarMember]:
        is_first = True
        while (header := self._header()) is not None:
            name = header.name
            if header.type == tarfile.XGLTYPE and is_first:
                # `git archive` records its commit there.
                _pax_path(self._metadata(header), default="")
            else:
                if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                    name, header = self._extended(header)
                yield self._member(header, name)
            is_first = False
        self._check_end()

    def _header(self) -> tarfile.TarInfo | None:
        """The next header block, ``None`` at the mark of the end."""
        while self._read_content(_SKIP_BYTES):
            pass
        self._exactly(self._padding_bytes)
        block = self._exactly(_BLOCK)
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise _broken(f"a tar header cannot be read: {error}") from None
        if header.size < 0:
            raise _broken(f"member {header.name!r} has {header.size} bytes")
        return header

    def _extended(self, header: tarfile.TarInfo) -> tuple[str, tarfile.TarInfo]:
        """The name in an extended header, and the plain header that follows it."""
        metadata = self._metadata(header)
        following = self._header()
        if following is None:
            raise _broken("an extended tar header is followed by no member")
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return _text(metadata.rstrip(b"\0")), following
        return _pax_path(metadata, default=following.name), following

    def _member(self, header: tarfile.TarInfo, name: str) -> TarMember:
        if header.type not in (*_FILES, tarfile.DIRTYPE):
            kind = _KINDS.get(header.type, f"of tar type {header.type!r}")
            raise AdapterRejected(
                "unsafe_archive", f"member {name!r} is {kind}; pack plain files and folders only"
            )
        is_folder = header.type == tarfile.DIRTYPE
        if is_folder and header.size:
            raise _broken(f"folder {name!r} has content")
        self._content_bytes, self._padding_bytes = header.size, _padding(header.size)
        return TarMember(name, is_folder, self._read_content)

    def _read_content(self, size: int) -> bytes:
        chunk = self._exactly(min(size, self._content_bytes))
        self._content_bytes -= len(chunk)
        return chunk

    def _metadata(self, header: tarfile.TarInfo) -> bytes:
        if header.size > _MAX_METADATA_BYTES:
            raise AdapterRejected(
                "archive_too_large",
                f"a tar header of {header.size} bytes; the limit is {_MAX_METADATA_BYTES}",
            )
        content = self._exactly(header.size)
        self._padding_bytes = _padding(header.size)
        return content

    def _exactly(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            chunk = self._source(size - len(content))
            if not chunk:
                raise _broken("it is truncated")
            content += chunk
        return bytes(content)

    def _check_end(self) -> None:
        while chunk := self._source(_SKIP_BYTES):
            if any(chunk):
                raise _broken("there is data after the end of the tar")


def _padding(size: int) -> int:
    return -size % _BLOCK


def _pax_path(metadata: bytes, *, default: str) -> str:
    """The ``path`` among pax records, each of which is ``<length> <key>=<value>\\n``."""
    path = default
    while metadata:
        length, _, _ = metadata.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        key, is_record, value = metadata[len(length) + 1 : end - 1].partition(b"=")
        if not is_record or metadata[end - 1 : end] != b"\n":
            raise _broken("a pax header is malformed")
        if _text(key).startswith(_UNSAFE_KEYS):
            raise AdapterRejected(
                "unsafe_archive", f"pax header {_text(key)!r}; pack plain files and folders only"
            )
        path = _text(value) if key == b"path" else path
        metadata = metadata[end:]
    return path


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _broken("a tar header is not UTF-8") from None


def _broken(reason: str) -> AdapterRejected:
    return AdapterRejected("invalid_archive", f"the archive is damaged: {reason}; pack it again")
