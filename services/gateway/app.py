"""Wiring: a Gateway -> the FastAPI application that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

import synod
from services.gateway import docs, rest
from services.gateway.core import Gateway


def build(gateway: Gateway) -> FastAPI:
    """The whole HTTP face of a plane: scoring, discovery, health, metrics and `/docs`, which needs no other site."""

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
    app.include_router(rest.router)

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()))

    return app
