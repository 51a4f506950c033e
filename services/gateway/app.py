"""Wiring: a Gateway -> the FastAPI application that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

import synod
from services.gateway import docs, rest
from services.gateway.auth import Gatekeeper
from services.gateway.core import Gateway

PAGE_HEADERS = {  # of what a browser shows: nothing from elsewhere, no script, no frame
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def build(gateway: Gateway, gatekeeper: Gatekeeper | None = None, *, metrics_need_token: bool = False) -> FastAPI:
    """The whole HTTP face of a plane: scoring, discovery, health, metrics and `/docs`, which needs no other site.

    `gatekeeper` (None: everyone may come in) guards scoring, uploads and discovery, and `/metrics` where
    `metrics_need_token`; health, readiness and the documents are open.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        gateway.close()

    app = FastAPI(
        title="Synod reward plane",
        version=synod.__version__,
        description="Reward models for image generators: a batch of items in, one outcome per item and scorer out.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.state.gatekeeper = gatekeeper or Gatekeeper()
    app.state.metrics_need_token = metrics_need_token
    app.include_router(rest.router)
    app.exception_handler(HTTPException)(rest.unrouted)

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()), headers=PAGE_HEADERS)

    return app
