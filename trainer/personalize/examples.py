"""What a stage trains on in one epoch: questions with answers, and images with their codes' masks.

Everything is drawn again in each epoch from (seed, stage, epoch). The authors' code draws crop, mirror and order once,
for all epochs (UniCTokens; docs/personalization.md).

Suffixes: B rows of a batch, N image positions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synod.contracts import Pixels
from trainer.personalize.records import ConceptRecord

ItemKind = Literal["positive", "random", "hard", "conversation", "text_only"]
Photos = Mapping[Path, Pixels]
YES, NO = "Yes.", "No."
RECOGNITIONS: Final = 4  # questions of each kind for each training image in an epoch
MIRRORED, ENLARGED, DROPPED = 0.25, 1.1, 0.1  # shares of mirrored images and of empty prompts; size before the crop
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A question about an image and its answer; `image` None is the black image."""

    image: Path | None
    query: str
    answer: str
    kind: ItemKind


def questions(
    concept: ConceptRecord, kinds: Collection[ItemKind], rng: np.random.Generator, text_repeats: int = 1
) -> list[Item]:
    """Return an epoch's questions of these kinds in a random order, those without an image `text_repeats` times.

    Recognition asks RECOGNITIONS questions of each kind per training image, positive ones about each image equally
    often, and negative ones about others in each epoch if there are more. A kind without images has no questions.
    """
    found: list[Item] = []
    shown: dict[ItemKind, Sequence[Path]] = {
        "positive": concept.train,
        "random": concept.random,
        "hard": concept.hard,
    }
    count = RECOGNITIONS * len(concept.train)
    for kind, images in shown.items():
        if kind in kinds and images and concept.recognition:
            answer = YES if kind == "positive" else NO
            pairs = zip(cycled(images, rng), cycled(concept.recognition, rng), strict=False)
            found += [Item(image, query, answer, kind) for image, query in islice(pairs, count)]
    for one in concept.conversations:
        kind = "text_only" if one.image is None else "conversation"
        if kind in kinds:
            found += [Item(one.image, one.text, one.answer, kind)] * (text_repeats if kind == "text_only" else 1)
    return [found[i] for i in rng.permutation(len(found))]


def batches(count: int, size: int) -> list[range]:
    """Return ranges of `size` that cover `count` rows; the last one may be shorter."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def cycled(items: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """Yield the items for ever, in a new order in each pass."""
    while True:
        yield from (items[i] for i in rng.permutation(len(items)))


def cropped(image: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """Return a random square of an image whose short side is 1.1 `side`, mirrored in a quarter of the cases."""
    height, width = image.shape[:2]
    short = round(ENLARGED * side)
    scale = short / min(height, width)
    size = (max(short, round(width * scale)), max(short, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = (int(rng.integers(length - side + 1)) for length in resized.shape[:2])
    found = resized[top : top + side, left : left + side]
    return np.ascontiguousarray(found[:, ::-1] if rng.random() < MIRRORED else found)


def masks(count: int, positions: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return masks [B N] as in Show-o's training: max(1, round(N cos(pi u / 2))) positions, with u uniform."""
    ratio = np.cos(0.5 * math.pi * rng.random(count))
    order = rng.random((count, positions)).argsort(-1).argsort(-1)
    masked: NDArray[np.bool_] = order < np.maximum(1, np.round(ratio * positions))[:, None]
    return masked


def prompts(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return the prompt of each row, empty in a tenth of the cases: guidance reads the empty prompt."""
    return ["" if dropped else text for dropped in rng.random(count) < DROPPED]
