"""One packed PEFT folder (tar, tar.gz or zip), unpacked as if its author meant harm.

Only the files of an adapter are ever written, flat, under names of ours. Everything is streamed
and counted while it is copied; nothing that an archive says about its own sizes is believed.
"""

import errno
import gzip
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from .error import AdapterRejected
from .folder import (
    CHUNK_BYTES,
    CONFIG_NAME,
    PICKLE_NAME,
    TEMPLATE_NAME,
    WEIGHTS_NAME,
    missing_weights,
    open_regular,
)
from .tar_stream import TarMember, TarStream

_WANTED = (CONFIG_NAME, WEIGHTS_NAME)
# Small archives may shrink well: tar pads to 10 KiB.
_RATIO_FREE_BYTES = 1 << 20
# What a zip's directory may take; 64 members with long names need 40 KiB.
_MAX_READ_BYTES = CHUNK_BYTES
_ZIP_LOCAL_HEADER_BYTES = 30
# Encrypted content, strong encryption, encrypted directory.
_ZIP_ENCRYPTED = 0x1 | 0x40 | 0x2000
# macOS keeps resource forks beside the files.
_FORK_FOLDER = "__MACOSX"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """What an archive may cost. Raises ``ValueError`` for a limit below 1."""

    max_packed_bytes: int = 4 << 30
    max_unpacked_bytes: int = (4 << 30) + (64 << 20)
    max_members: int = 64
    max_ratio: int = 20
    max_path_chars: int = 255

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) < 1:
                raise ValueError(f"{limit.name} is {getattr(self, limit.name)}; it must be >= 1")


def unpack(
    source: Path,
    into: Path,
    *,
    limits: ArchiveLimits | None = None,
    with_template: bool = False,
) -> None:
    """Write the adapter files packed in ``source`` into the existing folder ``into``.

    The format is told by content, not by name. Files may lie in one folder inside the archive; what
    is no adapter file is skipped. Raises ``AdapterRejected`` with ``not_found``, ``unsafe_format``,
    ``unsafe_file``, ``unsafe_archive``, ``invalid_archive`` or ``archive_too_large``.
    """
    limits = limits or ArchiveLimits()
    with _BoundedReader(open_regular(source).detach()) as file:
        packed_bytes = os.fstat(file.fileno()).st_size
        if packed_bytes > limits.max_packed_bytes:
            raise _too_large(f"it has {packed_bytes} bytes", limits.max_packed_bytes)
        try:
            wanted = (*_WANTED, TEMPLATE_NAME) if with_template else _WANTED
            _unpack(file, into, _Meter(limits, packed_bytes), wanted)
        except AdapterRejected:
            raise
        except (*_PARSER_ERRORS, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise _broken(str(error) or type(error).__name__) from error


# All that zipfile, gzip and zlib are known to raise for bytes of any kind.
_PARSER_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    IndexError,
    RuntimeError,
)


def _unpack(file: "_BoundedReader", into: Path, meter: "_Meter", wanted: Collection[str]) -> None:
    directory = _Directory(meter.limits)
    for member in _members(file, meter):
        name = directory.admit(member)
        if name is not None and name in wanted:
            _copy(member, into / name)
    directory.check_complete()


class _BoundedReader(io.BufferedReader):
    """Refuses the one large read by which a parser loads an archive's directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > _MAX_READ_BYTES:
            raise _too_large(f"its directory has {size} bytes", _MAX_READ_BYTES)
        return super().read(size)


class _Meter:
    """Counts the bytes that really come out."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int) -> None:
        self.limits = limits
        self._max_bytes = min(
            limits.max_unpacked_bytes, max(limits.max_ratio * packed_bytes, _RATIO_FREE_BYTES)
        )
        self._num_bytes = 0

    def metered(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def read_and_count(size: int) -> bytes:
            chunk = read(size)
            self._count(len(chunk))
            return chunk

        return read_and_count

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise AdapterRejected(
                "archive_too_large",
                f"the archive unpacks to over {self._max_bytes} bytes; the limits are "
                f"{self.limits.max_unpacked_bytes} bytes and {self.limits.max_ratio} times its "
                "own size",
            )


@dataclass(slots=True)
class _Directory:
    """The rules about names; sees every member before any of its bytes are read."""

    limits: ArchiveLimits
    _names: set[str] = field(default_factory=set)
    _files: set[str] = field(default_factory=set)
    _folder: str | None = None

    def admit(self, member: TarMember) -> str | None:
        """The plain file name of a member, ``None`` for what is no file of the adapter's folder."""
        parts = self._parts(member.name)
        key = "/".join(parts).casefold()
        if key in self._names:
            raise _unsafe(member.name, "occurs twice")
        self._names.add(key)
        if len(self._names) > self.limits.max_members:
            raise _too_large("it has too many members", self.limits.max_members)
        if not parts or parts[0] == _FORK_FOLDER:
            return None
        if len(parts) > (1 if member.is_folder else 2):
            raise _unsafe(member.name, "lies deeper than one folder; pack the adapter's files only")
        return None if member.is_folder else self._file(member.name, parts)

    def _file(self, name: str, parts: list[str]) -> str:
        folder = "/".join(parts[:-1])
        if self._folder not in (None, folder):
            raise _unsafe(name, "lies in another folder than the files before; pack one adapter")
        self._folder = folder
        self._files.add(parts[-1])
        return parts[-1]

    def _parts(self, name: str) -> list[str]:
        if len(name) > self.limits.max_path_chars:
            raise _unsafe(name, f"has a path of over {self.limits.max_path_chars} characters")
        if not name.isprintable() or "\\" in name or not name:
            raise _unsafe(name, "has no plain name")
        if name.startswith("/") or name[1:2] == ":":
            raise _unsafe(name, "has an absolute path")
        parts = [part for part in name.removesuffix("/").split("/") if part != "."]
        if ".." in parts or "" in parts:
            raise _unsafe(name, "has a path that leaves its folder or is not canonical")
        return parts

    def check_complete(self) -> None:
        if CONFIG_NAME not in self._files:
            raise AdapterRejected("not_found", f"the archive has no {CONFIG_NAME}")
        if WEIGHTS_NAME not in self._files:
            raise missing_weights("the archive", has_pickle=PICKLE_NAME in self._files)


def _members(file: _BoundedReader, meter: _Meter) -> Iterator[TarMember]:
    start = file.read(263)
    file.seek(0)
    if start.startswith(b"PK"):
        return _zip_members(file, meter)
    if start.startswith(b"\x1f\x8b"):
        return _gzip_members(file, meter)
    if start[257:262] == b"ustar":
        return iter(TarStream(meter.metered(file.read)))
    raise AdapterRejected(
        "invalid_archive", "this is no archive; send a .tar, .tar.gz or .zip of the adapter folder"
    )


def _gzip_members(file: _BoundedReader, meter: _Meter) -> Iterator[TarMember]:
    with gzip.GzipFile(fileobj=file) as inflated:
        yield from TarStream(meter.metered(inflated.read))


def _zip_members(file: _BoundedReader, meter: _Meter) -> Iterator[TarMember]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        _refuse_overlaps(infos)
        for info in infos:
            _check_zip_member(info)
            with archive.open(info) as content:
                yield TarMember(info.filename, info.is_dir(), meter.metered(content.read))


def _check_zip_member(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ZIP_ENCRYPTED:
        raise _unsafe(info.filename, "is encrypted; pack it without a password")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(info.filename, "is a link, pipe or device; pack plain files and folders only")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _unsafe(info.filename, "is compressed by another method than deflate")
    if "\0" in info.orig_filename:
        raise _unsafe(info.orig_filename, "has no plain name")


def _refuse_overlaps(infos: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small zip becomes petabytes."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _unsafe(info.filename, "overlaps another member")
        end = info.header_offset + _ZIP_LOCAL_HEADER_BYTES + info.compress_size


def _copy(member: TarMember, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as copy:
        while chunk := member.read(CHUNK_BYTES):
            copy.write(chunk)


def _unsafe(name: str, reason: str) -> AdapterRejected:
    return AdapterRejected("unsafe_archive", f"member {name[:100]!r} {reason}")


def _too_large(what: str, limit: int) -> AdapterRejected:
    return AdapterRejected("archive_too_large", f"the archive is refused: {what}, over {limit}")


def _broken(reason: str) -> AdapterRejected:
    return AdapterRejected("invalid_archive", f"the archive is damaged: {reason}; pack it again")
