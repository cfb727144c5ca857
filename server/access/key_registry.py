"""API keys in the one database, answered from memory."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec

from multiflora.adapters.database import Database

from ..errors import UnknownKey
from ..rate_limit import RateLimits
from .api_key import ApiKey, KeyWish, make_key
from .caller import Scope

_COLUMNS: Final = "id, name, hash, tenant, scopes, limits, created, expires, revoked"


class KeyRegistry:
    """Safe to call from any thread; changes wait for the disk."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        with database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM api_key ORDER BY created, id")
            self._keys = {row[0]: _key(row) for row in rows}

    def keys(self) -> tuple[ApiKey, ...]:
        """All that were ever made, the oldest first."""
        return tuple(self._keys.values())

    def find(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    def create(self, wish: KeyWish) -> tuple[ApiKey, str]:
        """A new key, and its text. Raises ``ValueError``."""
        key, text = make_key(wish, now=int(self._clock()))
        with self._database.transaction() as connection:
            connection.execute(
                f"INSERT INTO api_key ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(key)
            )
        self._keys[key.id] = key
        return key, text

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse the key from now on; a second time changes nothing. Raises ``UnknownKey``."""
        key = self._keys.get(key_id)
        if key is None:
            raise UnknownKey(key_id)
        if key.revoked is None:
            revoked = int(self._clock())
            with self._database.transaction() as connection:
                connection.execute("UPDATE api_key SET revoked = ? WHERE id = ?", (revoked, key_id))
            key = self._keys[key_id] = replace(key, revoked=revoked)
        return key


def _row(key: ApiKey) -> tuple[Any, ...]:
    scopes = msgspec.json.encode(sorted(key.scopes)).decode()
    limits = msgspec.json.encode(key.limits).decode()
    texts = (key.id, key.name, key.hash, key.tenant, scopes, limits)
    return (*texts, key.created, key.expires, key.revoked)


def _key(row: Any) -> ApiKey:
    key_id, name, digest, tenant, scopes, limits, created, expires, revoked = row
    return ApiKey(
        id=key_id,
        name=name,
        hash=digest,
        scopes=msgspec.json.decode(scopes, type=frozenset[Scope]),
        created=created,
        tenant=tenant,
        limits=msgspec.json.decode(limits, type=RateLimits),
        expires=expires,
        revoked=revoked,
    )
