"""An API key as it is kept: everything but the key itself, of which only a hash is known."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from ..rate_limit import RateLimits
from .caller import Caller, Scope

_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_KEY: Final = re.compile(r"mf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_NAME_CHARS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """Times are Unix times in seconds. ``tenant`` empty: what the key makes is shared.

    ``hash`` is plain SHA-256, in hex: the secret has 256 random bits, which no search finds, so a
    slow, salted hash as for passwords would protect nothing more and would let strangers make the
    server work for every wrong key.
    """

    id: str
    name: str
    hash: str
    scopes: frozenset[Scope]
    created: int
    tenant: str = ""
    limits: RateLimits = field(default_factory=RateLimits)
    expires: int | None = None
    revoked: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= _MAX_NAME_CHARS or not self.name.isprintable():
            raise ValueError(f"a key's name has 1 to {_MAX_NAME_CHARS} printable characters")
        if not self.scopes:
            raise ValueError(f"a key needs a scope: {', '.join(Scope)}")
        check_tenant(self.tenant)

    def matches(self, text: str) -> bool:
        """Whether ``text`` is this key; takes the same time for every wrong one."""
        return hmac.compare_digest(self.hash, hash_key(text))

    def is_valid(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def caller(self) -> Caller:
        return Caller(id=self.id, tenant=self.tenant, scopes=self.scopes, limits=self.limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWish:
    """What a new key is to be."""

    name: str
    scopes: frozenset[Scope]
    tenant: str = ""
    limits: RateLimits = field(default_factory=RateLimits)
    expires: int | None = None


def make_key(wish: KeyWish, *, now: int) -> tuple[ApiKey, str]:
    """A new key and its text, which nobody can find out later. Raises ``ValueError``."""
    if wish.expires is not None and wish.expires <= now:
        raise ValueError("the key would have expired before its first use")
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"mf-{key_id}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    key = ApiKey(
        id=key_id,
        name=wish.name,
        hash=hash_key(text),
        scopes=wish.scopes,
        created=now,
        tenant=wish.tenant,
        limits=wish.limits,
        expires=wish.expires,
    )
    return key, text


def hash_key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(text: str) -> str | None:
    """The public part of a well-formed key, by which it is looked up."""
    found = _KEY.fullmatch(text)
    return found.group(1) if found else None


def check_tenant(tenant: str) -> None:
    """Raise ``ValueError`` unless ``tenant`` is empty or a sane name."""
    if tenant and not _TENANT.fullmatch(tenant):
        raise ValueError(
            f"{tenant[:100]!r} is no tenant; use 1 to 64 letters, digits, '.', '_' and '-'"
        )


def parse_scopes(text: str) -> frozenset[Scope]:
    """Read scopes with commas between them. Raises ``ValueError``."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in list(Scope):
            raise ValueError(f"{word!r} is no scope; choose from {', '.join(Scope)}")
    return frozenset(Scope(word) for word in words)
