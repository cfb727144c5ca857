"""``If-Match``: change an adapter only if it still points where the client thinks."""

from fastapi import Request

from multiflora.engine.errors import RequestRejected


def if_match_of(request: Request) -> str | None:
    """The digest that the name must point at, with or without the quotes of an entity tag."""
    text = request.headers.get("if-match")
    if text is None:
        return None
    digest = text.strip().strip('"')
    if not digest or "," in digest or digest == "*":
        raise RequestRejected("If-Match takes one version, as GET shows it", param="if-match")
    return digest
