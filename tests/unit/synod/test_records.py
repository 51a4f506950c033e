"""The walk over record types: what it reads it writes, and what it refuses it names by path."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod import contracts as c
from synod.errors import InvalidRequest
from synod.formats import read_bin
from synod.reader import Node
from synod.records import Kind, read, write
from tests.unit.synod import records

METADATA = (c.Bounds, c.Pattern, c.NotEmpty, c.Wire)
RECORDS = [kind for _, kind in inspect.getmembers(c, is_dataclass) if kind not in METADATA]


@pytest.mark.parametrize("record", RECORDS, ids=lambda kind: kind.__name__)
@given(st.data())
def test_every_record_is_read_as_it_was_written(record: type, data: st.DataObject) -> None:
    value = data.draw(records.values(Kind(record)))
    tree = write(record, value)
    assert records.comparable(read(record, Node(tree), read_bin)) == records.comparable(value)


@dataclass(frozen=True)
class Point:
    x: Annotated[float, c.Bounds(0, 1)]
    colour: Literal["red", "green"] = "red"
    tags: tuple[str, ...] = ()
    size: Annotated[int | None, c.Bounds(1)] = None
    note: Annotated[str | None, c.Wire(always=True)] = None
    area: Annotated[float, c.Wire(key="class", required=True)] = 0.0


def test_defaults_are_left_out_unless_marked() -> None:
    assert write(Point, Point(0.5)) == {"x": 0.5, "colour": "red", "note": None, "class": 0.0}
    assert read(Point, Node({"x": 0.5, "class": 0, "tags": None})) == Point(0.5)
    assert write(str, "text") == "text"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 1.5}, "x: 1.5; give a finite number >= 0 and <= 1"),
        ({"x": None}, "x: missing"),
        ({"class": None}, "class: missing"),
        ({"area": 1.0}, "area: unknown key; known here: x, colour, tags, size, note, class"),
        ({"colour": "blue"}, "colour: 'blue'; give one of red, green"),
        ({"tags": ["a", 1]}, "tags[1]: a number where a string belongs"),
        ({"tags": ["\ud800"]}, "tags[0]: a string with a lone surrogate; send valid Unicode"),
        ({"size": 0}, "size: 0; give a whole number from 1 to 9223372036854775807"),
    ],
)
def test_a_fault_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(Point, Node({"x": 0.5, "class": 1.0} | change))
    assert raised.value.message == message


def test_an_image_is_refused_where_no_format_carries_bytes() -> None:
    with pytest.raises(InvalidRequest, match=r"^image: no image belongs here$"):
        read(c.ScoreItem, Node({"image": "AAAA"}))
