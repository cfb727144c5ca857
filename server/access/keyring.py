"""Turns what a request brings as its key into a `Caller`."""

import time
from collections.abc import Callable
from typing import Final

from .api_key import ApiKey, hash_key, id_of
from .caller import ANYBODY, Caller
from .error import InvalidKey
from .key_file import KeyFile
from .key_registry import KeyRegistry

_BEARER: Final = "bearer "
# Looked up in place of an unknown key, so that its id cannot be told from a known one by time.
_NOBODY: Final = ApiKey(
    id="", name="nobody", hash=hash_key(""), scopes=ANYBODY.scopes, created=0, revoked=0
)


class Keyring:
    """All keys of a server. One that never had any lets everybody do everything.

    Keys that were revoked or have expired still count: taking the last one away closes the server.
    """

    def __init__(
        self,
        registry: KeyRegistry,
        file: KeyFile | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry
        self._file = file
        self._clock = clock

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._file is None and not self.registry.keys()

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller of a request with this ``Authorization`` header. Raises ``InvalidKey``."""
        if self.is_open:
            return ANYBODY
        if authorization is None:
            raise InvalidKey("this server needs an API key: Authorization: Bearer KEY")
        text = authorization[len(_BEARER) :].strip()
        key = self._find(id_of(text) or "")
        is_right = key.matches(text)
        if not is_right or not key.is_valid(self._clock()) or not _is_bearer(authorization):
            raise InvalidKey("the API key is wrong, has expired or was revoked")
        return key.caller()

    def caller_of(self, key_id: str) -> Caller:
        """Whoever has a key, for work that goes on after the request that brought it.

        ``key_id`` is empty for what was asked without keys, which is good until there are some.
        Raises ``InvalidKey`` for a key that has expired or was revoked meanwhile.
        """
        if self.is_open and not key_id:
            return ANYBODY
        key = self._find(key_id)
        if key is _NOBODY or not key.is_valid(self._clock()):
            raise InvalidKey("the API key that this was asked with has expired or was revoked")
        return key.caller()

    def _find(self, key_id: str) -> ApiKey:
        found = self.registry.find(key_id)
        if found is None and self._file is not None:
            found = self._file.find(key_id)
        return found or _NOBODY


def _is_bearer(authorization: str) -> bool:
    return authorization[: len(_BEARER)].lower() == _BEARER
