"""Compute the key of a score: what identifies it in the store."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from services.gateway.store import ScoreKey
from synod.contracts import ImageInput, ImageRef, Origin, ScoreItem
from synod.digest import digest_of


def score_keys(item: ScoreItem, origins: Mapping[str, Origin]) -> dict[str, ScoreKey]:
    """Return the key of the item's score by each scorer of `origins`. All inputs of an item count.

    An image counts by the digest of what was sent: a PNG file and its pixels have different keys.
    """
    if not origins:
        return {}
    image = "" if item.image is None else _digest(item.image)
    references = tuple(map(_digest, item.references))
    inputs = _hash(repr((references, item.inputs())))
    return {name: ScoreKey(image, inputs, _hash(repr((name, origin)))) for name, origin in origins.items()}


def _digest(image: ImageInput) -> str:
    return image.digest if isinstance(image, ImageRef) else digest_of(image)


def _hash(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=32).hexdigest()
