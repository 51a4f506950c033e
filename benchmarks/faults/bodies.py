"""Almost valid request bodies: with odd values, or with bytes flipped, cut, repeated or inserted."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

import msgpack
import numpy as np
from hypothesis import strategies as st

from synod import contracts as c
from synod import records
from synod.codec import JSON, MSGPACK, PROTOBUF, Codec
from synod.digest import digest_of
from synod.images import encode_png

RAW: Final = np.full((2, 3, 3), 77, np.uint8)
PNG: Final = encode_png(np.full((8, 8, 3), 128, np.uint8))
_FULL: Final = c.ScoreItem(
    PNG,
    "a <bo> in a hat",
    (PNG, RAW),
    c.Reasoning("a dog", ("a dog", "a cat"), (1.0, 0.0)),
    c.GenEvalMetadata("position", (c.GenEvalClause("dog", 1), c.GenEvalClause("cat", 1, "red", ("left of", 0)))),
    c.Concept("animal", "dog", "<bo>"),
)
REQUESTS: Final = (
    c.ScoreRequest((_FULL, c.ScoreItem(RAW)), ("level", "words", "likeness"), "council", None, 60_000, "r"),
    c.ScoreRequest((c.ScoreItem(PNG),), ("level",)),
    c.ScoreRequest((c.ScoreItem(c.ImageRef(digest_of(PNG)), "a"),), weights={"words": 1.0}, request_id="é"),
)
PUTS: Final = (c.PutImagesRequest((PNG, RAW)), c.PutImagesRequest((PNG,)))
_DEEP: Any = 1
for _ in range(200):
    _DEEP = [_DEEP]
_ODD: Final[tuple[Any, ...]] = (
    *(None, True, -1, 0, 0.5, 2**63, -(2**63), 1e308, math.nan, math.inf, "", "x" * 600, "level", "\x00", "é" * 40),
    *([], {}, [[]] * 70, {"": ""}, _DEEP, b"", b"\x89PNG\r\n\x1a\n", PNG[:-20]),
    *(
        {"digest": c.DIGEST_PREFIX + "0" * 64},
        {"digest": "md5:0"},
        {"digest": 7},
        {"digest": digest_of(PNG), "shape": [1]},
    ),
    *({"data": b"", "shape": shape} for shape in ([0, 0, 3], [-1, -1, 3], [2**40, 2**40, 3], [1, 1], [1, 1, 3.0])),
    *("http://127.0.0.1/cat.png", "data:image/png;base64,AAAA"),
)
_SPLICES: Final[Mapping[str, tuple[bytes, ...]]] = {
    JSON.content_type: (
        *(b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf"),
        *(b'"items":[],', b'"request_id":"a","request_id":"b",', b'"\\ud800"', b",", b"\x00"),
    ),
    MSGPACK.content_type: (
        *(kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")),  # huge lengths
        *(b"\x91" * 3000, b"\x81\xa1a" * 3000, b"\xc1", b"\xc7\x08\x05", b"\xd4\xff\x00", b"\xcb\x7f\xf8" + bytes(6)),
        *(b"\xa5items\x90", b"\x81\x01\x02", b"\xd9\x02\xff\xff"),
    ),
    PROTOBUF.content_type: (
        *(b"\xff\xff\xff\xff\x0f", b"\xff" * 10 + b"\x01", b"\x0a\xff\xff\xff\xff\x07", b"\x0b", b"\x0f", b"\x00"),
        *(b"\x0a\x00" * 2000, b"\x0a" * 3000, b"\x12\x02\xff\xff", b"\xf8\xff\xff\xff\x0f\x01", b"\x2a\x00"),
    ),
}


def bodies(codec: Codec, *, put: bool = False) -> st.SearchStrategy[bytes]:
    """Return a strategy for bodies of score requests, or of uploads, in this format."""
    valid = st.sampled_from([valid_body(codec, one) for one in (PUTS if put else REQUESTS)])
    originals = st.one_of(valid, planted(codec, put=put)) if codec is not PROTOBUF else st.one_of(valid, _shuffled(put))
    splices = st.sampled_from(_SPLICES[codec.content_type])
    places, byte = st.integers(0, 2**16), st.integers(1, 255)
    flips = st.tuples(st.just("flip"), places, byte)
    cuts = st.tuples(st.just("cut"), places, st.none())
    inserts = st.tuples(st.just("insert"), places, splices | st.binary(max_size=8))
    repeats = st.tuples(st.just("repeat"), places, st.integers(1, 64))
    return st.builds(_mutate, originals, st.lists(st.one_of(flips, cuts, inserts, repeats), max_size=3))


def valid_body(codec: Codec, record: c.ScoreRequest | c.PutImagesRequest) -> bytes:
    """Encode a request in this format."""
    return codec.encode_put(record) if isinstance(record, c.PutImagesRequest) else codec.encode_request(record)


def planted(codec: Codec, *, put: bool) -> st.SearchStrategy[bytes]:
    """Return a strategy for bodies with one odd value, anywhere in the tree."""
    trees = [_tree(one) for one in (PUTS if put else REQUESTS)]
    spots = [(one, path) for one in trees for path in _paths(one)]
    odd = st.sampled_from(_ODD) | st.text(max_size=4) | st.integers(-(2**63), 2**64 - 1) | st.floats()
    return st.builds(lambda spot, value: _dump(codec, _plant(spot[0], spot[1], value)), st.sampled_from(spots), odd)


def _shuffled(put: bool) -> st.SearchStrategy[bytes]:
    """Concatenated messages: protobuf merges them, so fields occur twice."""
    valid = [valid_body(PROTOBUF, one) for one in (*PUTS, *REQUESTS)]
    return st.lists(st.sampled_from(valid), min_size=1, max_size=3).map(b"".join)


def _tree(record: c.ScoreRequest | c.PutImagesRequest) -> Any:
    return records.write(type(record), record)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [path, *(deeper for key, child in inner for deeper in _paths(child, (*path, key)))]


def _plant(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = deepcopy(list(whole) if isinstance(whole, tuple) else whole)
    copy[path[0]] = _plant(copy[path[0]], path[1:], value)
    return copy


def _dump(codec: Codec, whole: Any) -> bytes:
    """Encode without checks, as a careless client would."""
    if codec is JSON:
        return json.dumps(whole, default=lambda data: b64encode(data).decode()).encode()
    packed: bytes = msgpack.packb(whole, unicode_errors="surrogatepass")
    return packed


def _mutate(body: bytes, mutations: list[tuple[str, int, Any]]) -> bytes:
    for kind, place, how in mutations:
        at = place % (len(body) + 1)
        if kind == "flip" and at < len(body):
            body = body[:at] + bytes([body[at] ^ how]) + body[at + 1 :]
        elif kind == "cut":
            body = body[:at]
        elif kind == "insert":
            body = body[:at] + how + body[at:]
        elif kind == "repeat":
            body = body[:at] + body[at : at + how] * 2 + body[at + how :]
    return body
