"""Multipart bodies on their way to the disk: parsed as they arrive and never held in memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from multiflora.engine.errors import RequestRejected

from .errors import (
    RequestTooLarge,
    StorageFull,
    UnknownParameter,
    UploadTimeout,
    is_disk_full,
)

# For a field that only the limit of the whole body bounds.
ANY_SIZE: Final = 1 << 62
# Parsing and writing happen in a thread, this much at a time.
_BATCH_BYTES: Final = 1 << 18
# A client that is still sending would miss an early answer.
_MAX_SKIPPED_BYTES: Final = 64 << 20


class MalformedUpload(RequestRejected):
    """A body that is not the multipart form that the route asks for."""

    code = "invalid_upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """A field that a form may have: a short text, or a file that is staged as ``file``."""

    file: str | None = None
    max_bytes: int = 1024


# Names of fields, and what each may be.
FormFields: TypeAlias = Mapping[str, FormField]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedFile:
    """A staged file, not yet trusted in any way; ``filename`` is the client's word for it."""

    path: Path
    filename: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A form that was received whole, by the names of its fields.

    ``fingerprint`` is a sha256 of all that was sent, whatever its order.
    """

    texts: Mapping[str, str]
    files: Mapping[str, ReceivedFile]
    fingerprint: str


@asynccontextmanager
async def receive_upload(
    request: Request,
    staging: Callable[[], AbstractContextManager[Path]],
    fields: FormFields,
    *,
    idle_seconds: float,
) -> AsyncIterator[Upload]:
    """Receive the form into the private folder of ``staging``, which goes when the block ends.

    Raises ``RequestRejected`` (also for a client that sends nothing for ``idle_seconds``) and
    ``StorageFull``.
    """
    boundary = _boundary(request)
    with ExitStack() as opened:
        staged = await asyncio.to_thread(opened.enter_context, staging())
        form = _Form(staged, fields)
        opened.callback(form.close)
        try:
            await _receive(request, form, boundary, idle_seconds)
            upload = form.finish()
        except (RequestRejected, StorageFull) as error:
            if not isinstance(error, RequestTooLarge | UploadTimeout):
                await _skip(request)
            raise
        try:
            yield upload
        finally:
            await asyncio.to_thread(opened.close)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:
        raise MalformedUpload(
            "files are uploaded as multipart/form-data with a boundary; curl -F and the files= of "
            "HTTP clients send that"
        )
    return boundary


async def _receive(request: Request, form: "_Form", boundary: bytes, idle_seconds: float) -> None:
    parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
    batch = bytearray()
    chunks = request.stream()
    while (chunk := await _next(chunks, idle_seconds)) is not None:
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            await asyncio.to_thread(_feed, parser, bytes(batch))
            batch.clear()
    await asyncio.to_thread(_feed, parser, bytes(batch))


async def _next(chunks: AsyncIterator[bytes], idle_seconds: float) -> bytes | None:
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(chunks, None)
    except TimeoutError:
        raise UploadTimeout(f"the upload stood still for {idle_seconds:g} s") from None


def _feed(parser: MultipartParser, data: bytes) -> None:
    try:
        parser.write(data)
    except FormParserError as error:
        raise MalformedUpload(f"the body is not multipart/form-data: {error}") from None
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull("the disk is full; nothing was stored") from error
        raise


async def _skip(request: Request) -> None:
    skipped = 0
    with suppress(RequestRejected, RuntimeError):
        async for chunk in request.stream():
            skipped += len(chunk)
            if skipped > _MAX_SKIPPED_BYTES:
                return


@dataclass(slots=True)
class _Part:
    """The part that is being received: a short text or a file."""

    name: str
    limit: int
    path: Path | None
    file: BinaryIO | None
    filename: str
    size: int = 0
    text: bytearray = field(default_factory=bytearray)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


class _Form:
    """What the parser calls. A field is a file or a text by its name; the client's word, such as a
    content type, is not asked for.
    """

    def __init__(self, folder: Path, fields: FormFields) -> None:
        self._folder = folder
        self._fields = fields
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._part: _Part | None = None
        self._parts: dict[str, _Part] = {}
        self._is_ended = False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def close(self) -> None:
        for part in (*self._parts.values(), self._part):
            if part and part.file:
                part.file.close()

    def finish(self) -> Upload:
        if not self._is_ended:
            raise MalformedUpload("the form ends in the middle; send it again")
        texts, files = {}, {}
        for name, part in self._parts.items():
            if part.path is None:
                texts[name] = part.text.decode("utf-8", "replace")
            else:
                files[name] = ReceivedFile(
                    path=part.path, filename=part.filename, num_bytes=part.size
                )
        return Upload(texts=texts, files=files, fingerprint=self._fingerprint())

    def _fingerprint(self) -> str:
        total = hashlib.sha256()
        for name in sorted(self._parts):
            total.update(f"{name}={self._parts[name].digest.hexdigest()}\n".encode())
        return total.hexdigest()

    def _begin_part(self) -> None:
        self._header = self._value = self._disposition = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")[:64]
        if name not in self._fields:
            raise UnknownParameter(
                f"unknown field {name!r}; the form has {', '.join(self._fields)}", param=name
            )
        if name in self._parts:
            raise MalformedUpload(f"the field {name} comes twice", param=name)
        filename = options.get(b"filename", b"").decode("utf-8", "replace")
        self._part = self._parts[name] = self._new_part(name, filename)

    def _new_part(self, name: str, filename: str) -> _Part:
        known = self._fields[name]
        path = None if known.file is None else self._folder / known.file
        return _Part(name, known.max_bytes, path, open(path, "xb") if path else None, filename)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part, chunk = self._part, data[start:end]
        assert part is not None
        part.size += len(chunk)
        if part.size > part.limit:
            raise MalformedUpload(f"{part.name} is over {part.limit} bytes", param=part.name)
        part.digest.update(chunk)
        if part.file:
            part.file.write(chunk)
        else:
            part.text += chunk

    def _end_part(self) -> None:
        if self._part and self._part.file:
            self._part.file.close()
        self._part = None

    def _end(self) -> None:
        self._is_ended = True
