"""Serve the console: a page at `/` that scores one image. It has no framework and no build step.

    index.html style.css icon.svg   the page
    main.js                         connects the parts: catalogue, Score, Stop, token
    api.js messages.js              the service's paths and errors; a sentence for each error code
    form.js images.js               the form, which becomes one item of `POST /v1/score`
    results.js boxes.js             scores, failures, and boxes over the image
    health.js dom.js                replicas and reward health, polled; helpers that create elements

The content security policy allows only these files and this service, and trusted types refuse markup made from text.
The page itself needs no token; the requests that it sends do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

from services.gateway import pages

HEADERS: Final = pages.headers(
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "require-trusted-types-for 'script'",
)
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES: Final = {
    path.name: (path.read_bytes(), _KINDS[path.suffix])
    for path in sorted(Path(__file__).parent.iterdir())
    if path.suffix in _KINDS
}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """Return the page."""
    return await asset("index.html")


@router.get("/console/{name}")
async def asset(name: str) -> Response:
    """Return one of the page's files. They are read at start, so a request never reaches the disk."""
    if name not in _FILES:
        return Response(status_code=404, headers=HEADERS)
    content, kind = _FILES[name]
    return Response(content, headers=HEADERS, media_type=kind)
