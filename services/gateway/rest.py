"""Define the HTTP endpoints: each decodes its body, calls the gateway and encodes the result. No URL is fetched."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from services.gateway.disconnect import cancel_on_disconnect
from services.gateway.http import ErrorBoundaryRoute, authenticate, decode_body, gateway_of, opened, read_body
from services.gateway.ndjson import NDJSON, Ndjson
from services.gateway.negotiation import accepted_types, response_codec
from services.gateway.schema import operations
from synod.codec import codec_for
from synod.contracts import PutImagesResponse

router = APIRouter(route_class=ErrorBoundaryRoute)


@router.post("/v1/score", response_class=Response, summary="Score a batch of items", **operations.SCORE)
async def score(http: Request) -> Response:
    """Return each item's value per scorer, and the ensemble's reward. A failed item does not affect the others."""
    gateway, caller = gateway_of(http), authenticate(http, "score")
    codec = codec_for(http.headers.get("content-type"))
    request = await decode_body(codec.decode_request, await read_body(http))
    request = opened(http).accept(request, gateway.backend.specs, gateway.ensembles)
    if NDJSON in accepted_types(http):
        return await cancel_on_disconnect(http, Ndjson.open(http, gateway.stream(request, caller), opened(http)))
    response = await cancel_on_disconnect(http, gateway.score(request, caller))
    encoder = response_codec(http)
    return Response(encoder.encode_response(response), media_type=encoder.content_type)


@router.put("/v1/images", response_class=Response, summary="Upload images", **operations.IMAGES)
async def images(http: Request) -> Response:
    """Store images, so that requests may refer to them by digest. A full store drops the least recently used ones."""
    authenticate(http, "score")
    codec = codec_for(http.headers.get("content-type"))
    request = await decode_body(codec.decode_put, await read_body(http))
    opened(http).span.set(items=len(request.images))
    digests = await gateway_of(http).put_images(request.images)
    encoder = response_codec(http)
    return Response(encoder.encode_digests(PutImagesResponse(tuple(digests))), media_type=encoder.content_type)


@router.get("/v1/scorers", response_class=Response, summary="List scorers and ensembles", **operations.SCORERS)
async def scorers(http: Request) -> Response:
    """Return each scorer's needs, range, source and device, each ensemble's weights, and the limits of a request."""
    authenticate(http, "score")
    encoder = response_codec(http)
    return Response(encoder.encode_catalogue(await gateway_of(http).catalogue()), media_type=encoder.content_type)
