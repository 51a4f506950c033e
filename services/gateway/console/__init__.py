"""The console: a page at `/` that scores one image, and the files it is made of. No framework, no build step.

    index.html style.css icon.svg   what is seen
    main.js                         wiring: the service's catalogue, Score, Stop, the token
    api.js words.js                 the service's paths and errors; error codes in words
    form.js images.js             what is asked: the form -> one item of `POST /v1/score`
    results.js boxes.js             what is answered: scores, failures, boxes over the image
    health.js dom.js                replicas and reward health, polled; elements made without markup

A page's policy lets it load these files and speak to this service, and nothing else; trusted types refuse any markup
made from text. The page itself needs no token: what it asks the service for does.
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
    """The page."""
    return await asset("index.html")


@router.get("/console/{name}")
async def asset(name: str) -> Response:
    """One of the page's files: read at start, so that no name reaches the disk."""
    if name not in _FILES:
        return Response(status_code=404, headers=HEADERS)
    content, kind = _FILES[name]
    return Response(content, headers=HEADERS, media_type=kind)
