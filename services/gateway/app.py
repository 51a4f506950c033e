"""Build the FastAPI application of a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

import synod
from services.gateway import compat as compatible
from services.gateway import console, docs, negotiation, pages, probes, rest
from services.gateway.auth import Authenticator
from services.gateway.core import Gateway
from services.gateway.ports import Ports, serving
from services.gateway.schema.operations import SECURITY_SCHEMES
from services.gateway.shared_call import SharedCall
from services.observability import metrics
from services.settings import CompatSettings

DOCS_HEADERS = pages.headers("style-src 'unsafe-inline'")  # scripts are not allowed


class Api(FastAPI):
    """FastAPI with the security schemes in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        return document


def build(
    gateway: Gateway,
    authenticator: Authenticator | None = None,
    *,
    metrics_need_token: bool = False,
    ports: Ports | None = None,
    compat: CompatSettings | None = None,
) -> FastAPI:
    """Return the application: scoring, discovery, health, metrics, the console at `/` and the pages at `/docs`.

    `authenticator` (None: all callers are accepted) guards scoring, uploads and discovery, and `/metrics` if
    `metrics_need_token`. Health, readiness and documents need no token. While the application runs, it listens on
    `ports` as well as where its server does. `compat` adds the endpoints of other reward servers.
    """
    guard = authenticator or Authenticator()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with serving(ports or Ports(), app, gateway, guard):
                yield
        finally:
            gateway.close()

    app = Api(
        title="Synod reward service",
        version=synod.__version__,
        description="Reward models for image generators: a batch of items in, one outcome per item and scorer out.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.state.authenticator = guard
    app.state.metrics_need_token = metrics_need_token
    ranges = {name: (spec.low, spec.high) for name, spec in gateway.backend.specs.items()}
    app.state.metrics = SharedCall(partial(metrics.render, ranges))
    app.include_router(rest.router)
    app.include_router(probes.router)
    app.include_router(console.router)
    for router in compatible.routers(compat or CompatSettings()):
        app.include_router(router)
    app.exception_handler(HTTPException)(negotiation.not_found)

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()), headers=DOCS_HEADERS)

    return app
