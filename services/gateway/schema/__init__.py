"""The OpenAPI document of the wire. `synod.codec` is what reads bodies; tests hold the two together.

records     JSON Schema of what travels
examples    bodies that a reader can copy
operations  what each path takes and gives
"""

from services.gateway.schema.examples import RED_PNG, REQUEST_EXAMPLES, RESPONSE_EXAMPLE
from services.gateway.schema.operations import HEALTH, IMAGES, METRICS, READY, SCORE, SCORERS, SECURITY_SCHEMES
from services.gateway.schema.records import CATALOGUE, DIGESTS, FAILED, PART, PUT, REQUEST, RESPONSE, Schema

__all__ = [
    "CATALOGUE",
    "DIGESTS",
    "FAILED",
    "HEALTH",
    "IMAGES",
    "METRICS",
    "PART",
    "PUT",
    "READY",
    "RED_PNG",
    "REQUEST",
    "REQUEST_EXAMPLES",
    "RESPONSE",
    "RESPONSE_EXAMPLE",
    "SCORE",
    "SCORERS",
    "SECURITY_SCHEMES",
    "Schema",
]
