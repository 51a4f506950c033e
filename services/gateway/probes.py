"""Define the HTTP endpoints for monitoring: health, readiness and metrics."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Request, Response

from services.gateway.http import ErrorBoundaryRoute, authenticate, gateway_of, json_response
from services.gateway.schema import operations
from services.observability import metrics

router = APIRouter(route_class=ErrorBoundaryRoute)


@router.get("/v1/health", response_class=Response, summary="Check that the gateway is alive", **operations.HEALTH)
@router.get("/healthz", response_class=Response, summary="Check that the gateway is alive", **operations.HEALTH)
async def healthz(http: Request) -> Response:
    """Return 200 as soon as this gateway responds, whatever the state of the scorers."""
    return json_response({"alive": True})


@router.get("/readyz", response_class=Response, summary="Check that every replica is ready", **operations.READY)
async def readyz(http: Request) -> Response:
    """Return 200 when every replica has loaded and passed its golden items, else 503 with reasons."""
    found = await gateway_of(http).backend.readiness()
    ready = all(one.ready for one in found.values())
    body = {"ready": ready, "scorers": {name: dataclasses.asdict(one) for name, one in found.items()}}
    return json_response(body, 200 if ready else 503)


@router.get("/metrics", response_class=Response, summary="Prometheus metrics of all processes", **operations.METRICS)
async def prometheus(http: Request) -> Response:
    """Return the text exposition, summed over gateways and replicas; counters never decrease."""
    if http.app.state.metrics_need_token:
        authenticate(http, "metrics")
    return Response(await http.app.state.metrics.result(), media_type=metrics.CONTENT_TYPE)
