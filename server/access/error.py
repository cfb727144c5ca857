"""Why a caller is turned away before its request is looked at."""

from multiflora.engine.errors import EngineError


class AccessDenied(EngineError):
    """``status`` and ``type`` are those of the HTTP answer."""

    status = 403
    type = "permission_error"
    code = "access_denied"


class InvalidKey(AccessDenied):
    """No key, or one that is unknown, expired or revoked; which of these is not said."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class MissingScope(AccessDenied):
    """The key is good, but not for this."""

    code = "insufficient_scope"


class NotYours(AccessDenied):
    """A shared object, which all may use and only an administrator may change."""

    code = "not_owner"


class ForeignOrigin(AccessDenied):
    """A web page, or a name that an attacker's DNS points here, speaks to a server without keys."""

    code = "foreign_origin"
