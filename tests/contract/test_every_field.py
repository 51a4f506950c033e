"""Every field of the contract travels: in the three formats, the OpenAPI document, score keys, adapters and the client.

The samples are made of the types, so a new field is tested as soon as `synod.contracts` has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import httpx
import jsonschema
import numpy as np
import pytest

from services.backends import LocalBackend
from services.gateway import app, compat
from services.gateway.core import Gateway
from services.gateway.keys import score_keys
from services.gateway.rpc_server import RpcServer
from services.gateway.schema import records as schema
from services.settings import LimitSettings
from synod import contracts as c
from synod.adapters.items import item_of
from synod.client import AsyncSynodClient
from synod.client.references import references_by_digest
from synod.codec import CODECS, JSON, Codec
from synod.errors import SynodError, UnknownImage
from synod.records import IMAGE, IMAGE_DATA, OUTCOME, Kind, fields_of, texts, write
from tests.unit.synod.reward_services import Bright

PNG = b"\x89PNG\r\n\x1a\n"
DIGEST = c.DIGEST_PREFIX + "0a" * 32
ERROR = UnknownImage("message", (DIGEST,), retry_after_s=1.5)


def sample(kind: Kind) -> Any:
    """Return a value that is not the default of any field."""
    origin, arguments = get_origin(kind.type), get_args(kind.type)
    if kind.members:
        return {IMAGE: PNG, IMAGE_DATA: PNG, OUTCOME: full(c.Score)}[kind.members]
    if origin is Literal:
        return arguments[0]
    if origin is Mapping:
        return {"name": sample(kind.entries[1])}
    if origin is tuple:
        return tuple(sample(entry) for entry in kind.entries)
    if kind.type in (int, float):
        return kind.type(max(kind.bounds.low, 0)) if math.isfinite(kind.bounds.low) else kind.type(1)
    values = {str: DIGEST if kind.pattern else "text", bool: True, Any: ["free"], SynodError: ERROR}
    return values[kind.type] if kind.type in values else full(kind.type)


def full(record: type) -> Any:
    return record(**{field.name: sample(field.kind) for field in fields_of(record)})


def smallest(record: type) -> Any:
    return record(**{field.name: sample(field.kind) for field in fields_of(record) if field.required})


ITEM: c.ScoreItem = full(c.ScoreItem)
FAILED = c.ScoreResponse((c.ItemResult({"name": full(c.ScoreFailure)}),), "r")
MESSAGES: list[tuple[str, Any, schema.Schema]] = [
    *(("request", make(c.ScoreRequest), schema.REQUEST) for make in (full, smallest)),
    ("stream_request", full(c.ScoreRequest), schema.REQUEST),
    *(("response", answer, schema.RESPONSE) for answer in (full(c.ScoreResponse), smallest(c.ScoreResponse), FAILED)),
    *(("part", full(kind), schema.PART) for kind in (c.ScoredItem, c.Rewards)),
    ("put", full(c.PutImagesRequest), schema.PUT),
    ("digests", full(c.PutImagesResponse), schema.DIGESTS),
    ("catalogue", full(c.Catalogue), schema.CATALOGUE),
]


@pytest.mark.parametrize(("name", "record", "_of"), MESSAGES)
@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
def test_every_field_travels(codec: Codec, name: str, record: Any, _of: Any) -> None:
    assert getattr(codec, f"decode_{name}")(getattr(codec, f"encode_{name}")(record)) == record


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
def test_every_field_of_an_error_travels(codec: Codec) -> None:
    part = codec.decode_part(codec.encode_part(c.RequestError("r", ERROR)))
    assert isinstance(part, c.RequestError)
    for error in (part.error, codec.decode_error(codec.encode_error(ERROR))):
        assert c.ErrorFields.of(error) == c.ErrorFields.of(ERROR)


@pytest.mark.parametrize(("name", "record", "of"), MESSAGES)
def test_every_field_is_in_the_openapi_document(name: str, record: Any, of: schema.Schema) -> None:
    jsonschema.validate(json.loads(getattr(JSON, f"encode_{name}")(record)), of)


@pytest.mark.parametrize("field", fields_of(c.ScoreItem), ids=lambda field: field.name)
def test_every_field_counts_in_the_score_key(field: Any) -> None:
    origins = {"scorer": full(c.Origin)}
    without = replace(ITEM, **{field.name: field.default})
    assert score_keys(without, origins) != score_keys(ITEM, origins)


def test_every_field_is_a_column_of_the_adapters() -> None:
    columns = write(c.ScoreItem, ITEM)
    assert item_of(ITEM.image, ITEM.prompt, columns) == ITEM
    assert item_of(ITEM.image, ITEM.prompt, {name: as_text(value) for name, value in columns.items()}) == ITEM


def as_text(column: Any) -> Any:
    """Return a column as datasets without nested types hold it."""
    return json.dumps(column) if isinstance(column, dict) else column


def test_every_field_is_read_from_unirl_metadata() -> None:
    metadata = write(c.ScoreItem, ITEM, JSON.pack_bytes)
    history = [{"text": ITEM.prompt, "image_b64": metadata["image"]}]
    body = {"requests": [{"history": history, "required_rewards": ["scorer"], "metadata": metadata}]}
    (request,) = compat.read_unirl(json.dumps(body).encode())
    assert request.item == ITEM


def test_every_field_stays_when_images_go_references_by_digest() -> None:
    request: c.ScoreRequest = full(c.ScoreRequest)
    (named,) = references_by_digest(request)[0].items
    assert replace(named, image=ITEM.image, references=ITEM.references) == ITEM


async def test_every_field_reaches_the_scorer_from_the_client() -> None:
    """Over HTTP (msgpack) and gRPC."""
    scorer = Bright("scorer")
    gateway = Gateway(LocalBackend({"scorer": scorer}), {}, LimitSettings())
    server = RpcServer(gateway, 2**20)
    port = await server.start("127.0.0.1:0")
    clients = (
        AsyncSynodClient("http://service", transport=httpx.ASGITransport(app.build(gateway))),
        AsyncSynodClient(f"grpc://127.0.0.1:{port}"),
    )
    try:
        for level, client in enumerate(clients):
            pixels = np.full((2, 2, 3), level, np.uint8)
            async with client:
                await client.score(c.ScoreRequest((replace(ITEM, image=pixels, references=(pixels,)),), ("scorer",)))
            received = scorer.received[level]
            assert received.inputs() == ITEM.inputs()
            assert len(received.references) == 1
    finally:
        await server.stop()
        await gateway.backend.close()


def test_images_are_in_two_fields_only() -> None:
    """Digests, decoding and limits look for images in these fields."""
    holders = [
        f.name for f in fields_of(c.ScoreItem) if IMAGE in (f.kind.members, *(e.members for e in f.kind.entries))
    ]
    assert holders == ["image", "references"]


def test_texts_are_found_with_their_paths() -> None:
    found = dict(texts(ITEM, "items[0]"))
    assert found["items[0].geneval.include[0].class"] == found["items[0].reasoning.segments[0]"] == "text"
    assert found["items[0].geneval.vqa_list[0][1]"] == found["items[0].source_prompt"] == "text"
