"""Protobuf's own sides: hostile bytes are refused before they unfold, and what the schema leaves open is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from synod import contracts as c
from synod.codec import PROTOBUF
from synod.contracts import CONCEPT_KINDS, RELATIONS, ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PayloadTooLarge
from synod.protobuf.messages import number, word
from synod.protobuf.meter import MAX_FIELDS, meter
from synod.v1 import reward_pb2 as pb
from tests.unit.synod.records import requests


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (pb.ScoreRequest(), r"^items: empty; send at least one item$"),
        (pb.ScoreRequest(items=[pb.ScoreItem(image=pb.Image())]), r"^items\[0\]\.image\.data: missing$"),
        (
            pb.ScoreRequest(items=[pb.ScoreItem(references=[pb.Image()])]),
            r"^items\[0\]\.references\[0\]\.data: missing",
        ),
        (
            pb.ScoreRequest(items=[pb.ScoreItem(image=pb.Image(raw=pb.RawImage(data=b"x" * 12, height=-2, width=-2)))]),
            r"^items\[0\]\.image\.shape\[0\]: -2; give a whole number from 1",
        ),
        (
            pb.ScoreRequest(items=[pb.ScoreItem(image=pb.Image(raw=pb.RawImage(data=b"x", height=2, width=2)))]),
            r"^items\[0\]\.image: 1 bytes for shape \[2, 2, 3\], which needs 12$",
        ),
        (pb.ScoreRequest(items=[pb.ScoreItem(image=pb.Image(digest="cat"))]), r"^items\[0\]\.image\.digest: 'cat'; "),
        (pb.ScoreRequest(items=[pb.ScoreItem(concept=pb.Concept())]), r"^items\[0\]\.concept\.kind: '0'; give one of"),
        (
            pb.ScoreRequest(items=[pb.ScoreItem(concept=pb.Concept(kind=9))]),  # type: ignore[arg-type]
            r"^items\[0\]\.concept\.kind: '9'; give one of person, animal, object$",
        ),
        (
            pb.ScoreRequest(items=[pb.ScoreItem()], weights=pb.Weights(by_scorer={"ber": float("nan")})),
            r"^weights\.ber: nan; give a finite number >= 0$",
        ),
        (pb.ScoreRequest(items=[pb.ScoreItem()], timeout_ms=0), r"^timeout_ms: 0; give a whole number from 1"),
    ],
)
def test_what_the_schema_leaves_open_is_refused(message: pb.ScoreRequest, refusal: str) -> None:
    with pytest.raises(InvalidRequest, match=refusal):
        PROTOBUF.decode_request(message.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05a",
        b"\xff" * 40,
        b"\x0b",
        b"\x0f\x00",
        b"\x12\x01\xff",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x2d\x00",
    ],
    ids=["no size", "short", "endless varint", "group", "wire type 7", "not utf-8", "4 GiB", "cut number"],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^the body is not application/protobuf: ValueError: "):
        PROTOBUF.decode_request(data)


def test_a_field_of_a_later_version_is_skipped() -> None:
    body = pb.ScoreRequest(items=[pb.ScoreItem(prompt="a")]).SerializeToString() + b"\xf8\x01\x07"
    assert PROTOBUF.decode_request(body) == ScoreRequest((ScoreItem(prompt="a"),))


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x12\x00", b"\x0a\x02\x1a\x00", b"\x22\x02\x0a\x00", b"\xfa\x01\x00"])
def test_a_body_that_unfolds_is_refused_before_it_is_parsed(field: bytes) -> None:
    """Empty items, strings, references, weights, unknown fields: two bytes on the wire, some hundred in memory."""
    body = field * (MAX_FIELDS + 1)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=f"more than {MAX_FIELDS} fields; send several requests"):
            PROTOBUF.decode_request(body)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "inner",
    [
        pb.ScoreItem(references=[pb.Image()] * MAX_FIELDS),
        pb.ScoreItem(reasoning=pb.Reasoning(segments=[""] * MAX_FIELDS)),
        pb.ScoreItem(reasoning=pb.Reasoning(truth=[0.0] * (MAX_FIELDS + 1))),
    ],
    ids=["messages", "strings", "packed numbers"],
)
def test_fields_inside_of_fields_count_too(inner: pb.ScoreItem) -> None:
    with pytest.raises(PayloadTooLarge):
        PROTOBUF.decode_request(pb.ScoreRequest(items=[inner]).SerializeToString())


def test_images_are_stepped_over() -> None:
    """Their bytes may look like any number of fields."""
    item = ScoreItem(b"\x0a\x00" * MAX_FIELDS, references=(np.zeros((1024, 1024, 3), np.uint8),))
    assert PROTOBUF.decode_request(PROTOBUF.encode_request(ScoreRequest((item,)))).items[0].image == item.image


@given(requests)
def test_the_meter_lets_pass_what_the_schema_holds(request: ScoreRequest) -> None:
    meter(PROTOBUF.encode_request(request), pb.ScoreRequest)


@effort(max_examples=500)
@given(st.binary(max_size=80))
def test_the_meter_refuses_nothing_that_parses(data: bytes) -> None:
    """Groups apart, which no writer of proto3 makes."""
    try:
        pb.ScoreRequest.FromString(data)
    except DecodeError:
        return
    refused = ""
    try:
        meter(data, pb.ScoreRequest)
    except ValueError as error:
        refused = str(error)
    assert not refused or "wire type 3" in refused


def test_every_word_of_the_records_has_its_enum_value() -> None:
    for enum, words in ((pb.Relation.DESCRIPTOR, RELATIONS), (pb.ConceptKind.DESCRIPTOR, CONCEPT_KINDS)):
        values = [number(enum, one) for one in words]
        assert [word(enum, value) for value in values] == list(words)
        assert sorted(values) == list(range(1, len(enum.values)))


RECORDS = sorted({*pb.DESCRIPTOR.message_types_by_name} & {*dir(c)} - {"Outcome"})


@pytest.mark.parametrize("name", [*RECORDS, "ListScorersResponse"])
def test_the_schema_names_every_field_of_the_contract(name: str) -> None:
    messages = {field.removesuffix("_json") for field in getattr(pb, name).DESCRIPTOR.fields_by_name}
    around = {"request_id"} if name in ("ScoredItem", "Rewards") else set()  # of ScoreStreamResponse
    assert messages | around == set(getattr(c, name, c.Catalogue).__dataclass_fields__)
