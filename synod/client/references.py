"""References by digest, so that they travel once and not with every rollout. Pure."""

from __future__ import annotations

from dataclasses import replace

from synod.contracts import ImageData, ImageInput, ImageRef, ScoreRequest, is_raw
from synod.digest import digest_of


def by_digest(request: ScoreRequest) -> tuple[ScoreRequest, dict[str, ImageData]]:
    """The request with its references by digest, and the images that they name.

    An object that many items share is hashed once. An array that is no image stays, to be refused by its path.
    """
    images: dict[str, ImageData] = {}
    named: dict[int, ImageRef] = {}

    def name(image: ImageInput) -> ImageInput:
        if isinstance(image, ImageRef) or not (isinstance(image, bytes) or is_raw(image)):
            return image
        if id(image) not in named:
            named[id(image)] = ImageRef(digest_of(image))
            images[named[id(image)].digest] = image
        return named[id(image)]

    items = tuple(replace(item, references=tuple(map(name, item.references))) for item in request.items)
    return replace(request, items=items), images
