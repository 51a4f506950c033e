"""Random records of the whole contract, and what makes two of them equal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from synod import contracts as c
from synod.errors import Overloaded, SynodError, Unauthenticated, UnknownImage

texts = st.text(st.characters(codec="utf-8"), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(0, 1e300)
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
items = st.builds(
    c.ScoreItem,
    st.none() | images,
    st.none() | texts,
    st.lists(images, max_size=2).map(tuple),
    st.none() | reasonings,
    st.none() | genevals,
    st.none() | st.builds(c.Concept, st.sampled_from(c.CONCEPT_KINDS), st.none() | texts, st.none() | texts),
    st.none() | texts,
)
requests = st.builds(
    c.ScoreRequest,
    st.lists(items, min_size=1, max_size=3).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
    st.none() | texts,
    st.none() | st.dictionaries(texts, weights, max_size=3),
    st.none() | st.integers(1, 2**40),
    st.none() | texts,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
origins = st.builds(c.Origin, texts, texts, st.none() | texts)
outcomes = st.one_of(
    st.builds(c.Score, finite, st.dictionaries(texts, plain, max_size=2), st.none() | origins),
    st.builds(c.ScoreFailure, texts, texts, st.booleans()),
)
results = st.builds(c.ItemResult, st.dictionaries(texts, outcomes, max_size=2), st.none() | outcomes)
responses = st.builds(c.ScoreResponse, st.lists(results, max_size=3).map(tuple), texts)
errors = st.one_of(
    st.builds(Overloaded, texts, retry_after_s=st.none() | st.floats(0, 1e6)),
    st.builds(UnknownImage, texts, st.lists(digests, max_size=2), retry_after_s=st.none() | st.floats(0, 1e6)),
    st.builds(Unauthenticated, texts),
    st.builds(SynodError, texts),
)
parts = st.one_of(
    st.builds(c.ScoredItem, texts, st.integers(0, 2**40), texts, outcomes),
    st.builds(c.Rewards, texts, st.lists(st.none() | outcomes, max_size=3).map(tuple)),
    st.builds(c.RequestError, texts, errors),
)
puts = st.builds(c.PutImagesRequest, st.lists(contents, min_size=1, max_size=3).map(tuple))
kept = st.builds(c.PutImagesResponse, st.lists(digests, max_size=3).map(tuple))
scorers = st.builds(
    c.ScorerInfo,
    *(texts, st.lists(texts, max_size=2).map(tuple), finite, finite, texts, texts),
    *[st.none() | texts] * 3,
    st.none() | finite.map(abs),
    st.none() | st.integers(0, 2**62),
)
ensembles = st.builds(
    c.EnsembleInfo,
    st.none() | st.dictionaries(texts, weights, max_size=2),
    st.dictionaries(texts, st.dictionaries(texts, weights, max_size=2), max_size=2),
    st.sampled_from(["fail", "renormalise"]),
    st.booleans(),
)
catalogues = st.builds(
    c.Catalogue,
    st.lists(scorers, max_size=2).map(tuple),
    st.dictionaries(texts, ensembles, max_size=2),
    st.dictionaries(texts, st.integers(0, 2**62), max_size=3),
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
