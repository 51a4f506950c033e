"""Random records of the whole contract, made of its types, and what makes two of them equal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args

import numpy as np
from hypothesis import strategies as st

from synod import contracts as c
from synod.errors import Overloaded, SynodError, Unauthenticated, UnknownImage
from synod.records import IMAGE, IMAGE_DATA, Kind, fields_of, kind_of

FLOAT_MAX = sys.float_info.max
texts = st.text(st.characters(codec="utf-8"), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
raw = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda side: st.binary(min_size=3 * math.prod(side), max_size=3 * math.prod(side)).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(*side, 3)
    )
)
contents: st.SearchStrategy[c.ImageData] = st.one_of(st.binary(max_size=20), raw)
digests = st.binary(min_size=32, max_size=32).map(lambda data: c.DIGEST_PREFIX + data.hex())
images: st.SearchStrategy[c.ImageInput] = st.one_of(contents, st.builds(c.ImageRef, digests))
reasonings = st.lists(st.tuples(texts, st.floats(0, 1)), max_size=3).flatmap(
    lambda pairs: st.builds(
        c.Reasoning, texts, st.just(tuple(s for s, _ in pairs)), st.just(tuple(float(y) for _, y in pairs))
    )
)


def clauses(targets: int) -> st.SearchStrategy[c.GenEvalClause]:
    position = st.tuples(st.sampled_from(c.RELATIONS), st.integers(0, targets - 1)) if targets else st.none()
    return st.builds(c.GenEvalClause, texts, st.integers(1, 9), st.none() | texts, st.none() | position)


genevals = st.integers(0, 3).flatmap(
    lambda n: st.builds(
        c.GenEvalMetadata,
        *(texts, st.tuples(*[clauses(n)] * n), st.lists(clauses(n), max_size=2).map(tuple)),
        st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    )
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
errors = st.one_of(
    st.builds(Overloaded, texts, retry_after_s=st.none() | st.floats(0, 1e6)),
    st.builds(UnknownImage, texts, st.lists(digests, max_size=2), retry_after_s=st.none() | st.floats(0, 1e6)),
    st.builds(Unauthenticated, texts),
    st.builds(SynodError, texts),
)
RULED = {c.Reasoning: reasonings, c.GenEvalMetadata: genevals, SynodError: errors}


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Return a strategy of a kind's values, made of its type."""
    entries = kind.entries
    if kind.members in (IMAGE, IMAGE_DATA):
        found = images if kind.members == IMAGE else contents
    elif kind.members:
        found = st.one_of([values(Kind(member)) for member in get_args(kind.type)])
    elif kind.type in RULED:
        found = RULED[kind.type]
    elif is_dataclass(kind.type):
        found = st.builds(kind.type, **{field.name: values(field.kind) for field in fields_of(kind.type)})
    elif kind.pattern is not None:
        found = digests
    elif kind.type is float:
        found = st.floats(max(kind.bounds.low, -FLOAT_MAX), min(kind.bounds.high, FLOAT_MAX))
    elif kind.type is int:
        found = st.integers(int(kind.bounds.low), 2**62)
    elif kind.type in (str, bool, Any):
        found = {str: texts, bool: st.booleans(), Any: plain}[kind.type]
    elif getattr(kind.type, "__origin__", None) is Literal:
        found = st.sampled_from(kind.type.__args__)
    elif len(entries) == 2 and kind.type.__origin__ is Mapping:
        found = st.dictionaries(texts, values(entries[1]), max_size=2)
    elif Ellipsis in kind.type.__args__:
        found = st.lists(values(entries[0]), min_size=kind.not_empty is not None, max_size=2).map(tuple)
    else:
        found = st.tuples(*map(values, entries))
    return st.none() | found if kind.nullable else found


requests, responses, puts, kept, catalogues, parts = (
    values(kind_of(one))
    for one in (c.ScoreRequest, c.ScoreResponse, c.PutImagesRequest, c.PutImagesResponse, c.Catalogue, c.Part)
)


def comparable(value: Any) -> Any:
    """Records with pixels as (shape, bytes) and errors as their fields, so that == means equal."""
    if isinstance(value, np.ndarray):
        assert value.dtype == np.uint8
        return ("raw", value.shape, value.tobytes())
    if isinstance(value, SynodError):
        return (type(value), value.message, getattr(value, "digests", ()), value.retry_after_s)
    if isinstance(value, tuple):
        return tuple(comparable(entry) for entry in value)
    if isinstance(value, c.ScoreRequest | c.ScoreItem | c.RequestError | c.PutImagesRequest):
        return {name: comparable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
