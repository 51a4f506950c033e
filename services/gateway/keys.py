"""PURE: an item and a scorer -> the key of its score. All of an item's inputs count, whichever the scorer reads."""

from __future__ import annotations

from hashlib import blake2b

from services.gateway.store import ScoreKey
from synod.contracts import ImageInput, ImageRef, Origin, ScoreItem
from synod.digest import digest_of


def keys_of(item: ScoreItem, origins: dict[str, Origin]) -> dict[str, ScoreKey]:
    """Scorer name -> key, for the scorers whose origin is known; `origins` may be empty, and then nothing is hashed.

    Images are taken by the digest of what was sent: a PNG and its pixels are two keys.
    """
    if not origins:
        return {}
    image = "" if item.image is None else _digest(item.image)
    references = tuple(map(_digest, item.references))
    texts = (item.prompt, item.source_prompt)
    inputs = _hash(repr((texts, references, item.reasoning, item.geneval, item.concept)))
    return {name: ScoreKey(image, inputs, _hash(repr((name, origin)))) for name, origin in origins.items()}


def _digest(image: ImageInput) -> str:
    return image.digest if isinstance(image, ImageRef) else digest_of(image)


def _hash(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=32).hexdigest()
