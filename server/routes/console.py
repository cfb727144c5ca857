"""``/console``: the page for people. Static and public; what it shows, it asks of the API."""

from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)
_FOLDER: Final = Path(__file__).resolve().parent.parent / "console"
_PAGE: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Files of this server and its API, and nothing else: no inline script or style, no other host.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


@router.get("/console")
async def show_console() -> Response:
    return _answer(_PAGE)


@router.get("/console/")
async def find_console() -> Response:
    """The page's references are relative to the path without a slash."""
    return RedirectResponse("../console", 308)


@router.get("/console/{name}")
async def show_file(name: str) -> Response:
    """A file that the page refers to."""
    return _answer(name)


@cache
def _files() -> dict[str, bytes]:
    """All that there is, so that no name of a client's is ever looked for on the disk."""
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}


def _answer(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        raise HTTPException(404)
    media_type = _TYPES[Path(name).suffix]
    return Response(content, media_type=media_type, headers={"content-security-policy": _POLICY})
