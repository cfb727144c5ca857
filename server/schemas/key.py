"""API keys as the API shows them, and the body that asks for one."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..access.api_key import ApiKey, KeyWish
from ..access.caller import Scope
from ..rate_limit import RateLimits
from .body import RequestBody


class LimitsBody(BaseModel):
    """None is no limit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests_per_minute: int | None = Field(None, ge=1, lt=2**31)
    tokens_per_minute: int | None = Field(None, ge=1, lt=2**31)
    max_concurrent: int | None = Field(None, ge=1, lt=2**31)


class KeyBody(RequestBody):
    """A key to make; ``expires_at`` is a Unix time."""

    name: str = Field(min_length=1, max_length=100)
    scopes: list[str] = Field(min_length=1, max_length=len(Scope))
    tenant: str = Field("", max_length=64)
    limits: LimitsBody = LimitsBody(
        requests_per_minute=None, tokens_per_minute=None, max_concurrent=None
    )
    expires_at: int | None = Field(None, ge=0, lt=2**53)

    def wish(self) -> KeyWish:
        """Raises ``ValueError``."""
        return KeyWish(
            name=self.name,
            scopes=frozenset(map(Scope, self.scopes)),
            tenant=self.tenant,
            limits=RateLimits(**self.limits.model_dump()),
            expires=self.expires_at,
        )


def key_object(key: ApiKey, *, text: str | None = None) -> dict[str, Any]:
    """``text`` is the key itself, which is shown once."""
    limits = key.limits
    shown = {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "scopes": sorted(key.scopes),
        "tenant": key.tenant,
        "limits": {
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "max_concurrent": limits.max_concurrent,
        },
        "created_at": key.created,
        "expires_at": key.expires,
        "revoked_at": key.revoked,
    }
    return shown if text is None else {**shown, "key": text}
