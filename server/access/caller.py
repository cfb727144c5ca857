"""Who a request comes from, and what it may see and do."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, cast

from fastapi import Request
from starlette.types import Scope as StarletteScope

from ..rate_limit import RateLimits


class Scope(StrEnum):
    """What a key is good for; ``admin`` is good for everything, of every tenant."""

    INFERENCE = "inference"
    ADAPTERS = "adapters"
    TRAINING = "training"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """``tenant`` is whose things it makes; empty for shared ones.

    ``id`` is that of its key, empty on a server without keys.
    """

    id: str = ""
    tenant: str = ""
    scopes: frozenset[Scope] = frozenset()
    limits: RateLimits = field(default_factory=RateLimits)

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    @property
    def view(self) -> str | None:
        """The tenant whose things it sees beside shared ones; None for all tenants."""
        return None if self.is_admin else self.tenant

    def has(self, scope: Scope) -> bool:
        return self.is_admin or scope in self.scopes

    def sees(self, tenant: str) -> bool:
        """Whether it may know of a tenant's things."""
        return self.is_admin or tenant in ("", self.tenant)

    def owns(self, tenant: str) -> bool:
        """Whether it may change a tenant's things; tenants may not change shared ones."""
        return self.is_admin or tenant == self.tenant


# Whoever reaches a server without keys; it listens on the loopback address only.
ANYBODY: Final = Caller(scopes=frozenset({Scope.ADMIN}))
_SCOPE_KEY: Final = "multiflora.caller"


def caller_of(request: Request) -> Caller:
    """The caller of an authorized request."""
    return cast(Caller, request.scope[_SCOPE_KEY])


def key_of(scope: StarletteScope) -> str:
    """The id of the key of a request; empty without one, and before it is authorized."""
    caller: Caller | None = scope.get(_SCOPE_KEY)
    return caller.id if caller else ""


def set_caller(scope: StarletteScope, caller: Caller) -> None:
    scope[_SCOPE_KEY] = caller
