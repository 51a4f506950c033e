"""References by digest, so that they travel once and not with every rollout. Pure."""

from __future__ import annotations

from dataclasses import replace

from synod.contracts import Content, ImageRef, Picture, ScoreRequest, is_raw
from synod.digest import digest_of


def by_digest(request: ScoreRequest) -> tuple[ScoreRequest, dict[str, Content]]:
    """The request with its references by digest, and the pictures that they name.

    An object that many items share is hashed once. An array that is no picture stays, to be refused by its path.
    """
    pictures: dict[str, Content] = {}
    named: dict[int, ImageRef] = {}

    def name(picture: Picture) -> Picture:
        if isinstance(picture, ImageRef) or not (isinstance(picture, bytes) or is_raw(picture)):
            return picture
        if id(picture) not in named:
            named[id(picture)] = ImageRef(digest_of(picture))
            pictures[named[id(picture)].digest] = picture
        return named[id(picture)]

    items = tuple(replace(item, references=tuple(map(name, item.references))) for item in request.items)
    return replace(request, items=items), pictures
