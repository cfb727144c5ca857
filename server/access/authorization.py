"""The door: finds a request's route and its rule, and turns away whoever the rule does not name."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from multiflora.adapters.error import RegistryError
from multiflora.engine.errors import RequestRejected

from ..errors import error_response
from .caller import Caller, set_caller
from .error import AccessDenied, MissingScope
from .keyring import Keyring
from .origin import OriginCheck
from .ownership import Ownership
from .rule import RULES, Rule

_ANSWERS: Final = (AccessDenied, HTTPException, RegistryError, RequestRejected)


class AuthorizationMiddleware:
    """Decides by the method and the path alone, as the router will; no header can change either.

    ``routes`` are the application's, in its order. A route without a rule is answered as one that
    does not exist, and a stranger is asked for a key before that.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[Route],
        keyring: Keyring,
        ownership: Ownership,
        origin: OriginCheck,
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        self._app = app
        self._routes = routes
        self._keyring = keyring
        self._ownership = ownership
        self._origin = origin
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._authorize(scope)
        except _ANSWERS as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _authorize(self, scope: Scope) -> None:
        route, params, allowed = self._route_of(scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        rule = self._rules.get(f"{method} {route.path}") if route else None
        headers = Headers(scope=scope)
        if self._keyring.is_open:
            self._origin.check(method, headers)
        if rule is not None and rule.scope is None:
            return
        caller = self._keyring.authenticate(headers.get("authorization"))
        set_caller(scope, caller)
        if rule is not None:
            _check_scope(caller, rule)
            await self._ownership.check(caller, rule, params)
        elif route is None and allowed:
            raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})
        else:
            raise HTTPException(404)

    def _route_of(self, scope: Scope) -> tuple[Route | None, dict[str, Any], set[str]]:
        """The route, what its path names, and the methods of the path if this is not one."""
        allowed: set[str] = set()
        for route in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                return route, child["path_params"], allowed
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        return None, {}, allowed


def _check_scope(caller: Caller, rule: Rule) -> None:
    wanted = (rule.scope, rule.partial)
    if rule.scope is not None and not any(scope and caller.has(scope) for scope in wanted):
        raise MissingScope(f"the API key lacks the scope {rule.scope.value!r} for this route")
