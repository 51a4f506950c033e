"""Send references by digest, so that each travels once and not with every rollout. Pure."""

from __future__ import annotations

from dataclasses import replace

from synod.contracts import ImageData, ImageInput, ImageRef, ScoreRequest, is_raw
from synod.digest import digest_of


def references_by_digest(request: ScoreRequest) -> tuple[ScoreRequest, dict[str, ImageData]]:
    """Replace the request's references by their digests; return it with the images by digest.

    An object that several items share is hashed once. An array that is not an image stays, so that it is refused with
    its path.
    """
    images: dict[str, ImageData] = {}
    refs: dict[int, ImageRef] = {}

    def to_ref(image: ImageInput) -> ImageInput:
        if isinstance(image, ImageRef) or not (isinstance(image, bytes) or is_raw(image)):
            return image
        if id(image) not in refs:
            refs[id(image)] = ImageRef(digest_of(image))
            images[refs[id(image)].digest] = image
        return refs[id(image)]

    items = tuple(replace(item, references=tuple(map(to_ref, item.references))) for item in request.items)
    return replace(request, items=items), images
