"""API keys in a file of one JSON object a line, for servers whose keys are provisioned."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from multiflora.adapters import durable

from ..errors import UnknownKey
from .api_key import ApiKey, KeyWish, make_key

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_DECODER: Final = msgspec.json.Decoder(ApiKey)


class KeyFile:
    """Read again within a second of a change, so that a revoked key ends without a restart.

    A file that became unreadable keeps the keys that were read last, and says so in the log.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._seen = _facts(path)
        self._looked = time.monotonic()
        self._keys = _read(path) if self._seen else {}

    @classmethod
    def open(cls, path: Path) -> "KeyFile":
        """The file of a server, which must exist. Raises ``ValueError``."""
        if not path.is_file():
            raise ValueError(f"--api-key-file is {path}, which is no file; see multiflora keys")
        return cls(path)

    def keys(self) -> tuple[ApiKey, ...]:
        self._refresh()
        return tuple(self._keys.values())

    def find(self, key_id: str) -> ApiKey | None:
        self._refresh()
        return self._keys.get(key_id)

    def create(self, wish: KeyWish) -> tuple[ApiKey, str]:
        """Add a key; returns it and its text. Raises ``ValueError``, ``OSError``."""
        key, text = make_key(wish, now=int(self._clock()))
        self._write([*self.keys(), key])
        return key, text

    def revoke(self, key_id: str) -> ApiKey:
        """Raises ``UnknownKey``, ``OSError``."""
        found = self.find(key_id)
        if found is None:
            raise UnknownKey(key_id)
        revoked = replace(found, revoked=found.revoked or int(self._clock()))
        self._write([revoked if key.id == key_id else key for key in self.keys()])
        return revoked

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if (facts := _facts(self._path)) == self._seen:
            return
        self._seen = facts
        try:
            self._keys = _read(self._path)
        except ValueError as error:
            logger.error("the API keys stay as they were: %s", error)

    def _write(self, keys: Iterable[ApiKey]) -> None:
        content = b"".join(msgspec.json.encode(key) + b"\n" for key in keys)
        descriptor, staged = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        durable.sync(Path(staged))
        os.rename(staged, self._path)
        durable.sync(self._path.parent)
        self._seen, self._keys = _facts(self._path), _read(self._path)


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> dict[str, ApiKey]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            key = _DECODER.decode(line)
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if key.id in keys:
            raise ValueError(f"{path}, line {number}: the id {key.id} comes twice")
        keys[key.id] = key
    return keys
