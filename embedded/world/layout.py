"""Place entities inside the image, apart from each other, in unambiguous relations. Units are pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from embedded.world.records import SIZE, Box, Entity, Placed
from embedded.world.render import extent
from synod.contracts import Relation

GAP = 5.0  # between outlines; at least 3 remain after a render's jitter
MARGIN = 2.0
_TRIES = 200
_POSITION_THRESHOLD = 0.1  # GenEval's


def relation(a: Box, b: Box) -> dict[Relation, float]:
    """Return how far `a` lies in each direction from `b` by GenEval's rule: a relation holds above 0.5.

    The centre offset is shortened per axis by 0.1 of both boxes' summed sides, then divided by its full length.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    slack = [_POSITION_THRESHOLD * (a[i + 2] - a[i] + b[i + 2] - b[i]) for i in (0, 1)]
    norm = math.hypot(*offset) or 1.0
    dx, dy = (math.copysign(max(abs(o) - s, 0.0), o) / norm for o, s in zip(offset, slack, strict=True))
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}


def gap(a: Box, b: Box) -> float:
    """Return the larger of the horizontal and vertical distance of two boxes; negative when they overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def place_entity(entity: Entity, size: float, rng: np.random.Generator, region: Box | None = None) -> Placed:
    """Place `entity` at random inside `region` (default: the image), mirrored and tilted at random.

    `size` is the longest side of a square body; an elongated body is up to a fifth longer, for the same area. A size
    that does not fit is reduced.
    """
    return _place(entity, size, rng, region)[0]


def _place(entity: Entity, size: float, rng: np.random.Generator, region: Box | None = None) -> tuple[Placed, Box]:
    """Return what `place_entity` does, and its extent."""
    x0, y0, x1, y1 = region or (MARGIN, MARGIN, SIZE - MARGIN, SIZE - MARGIN)
    flip, tilt = bool(rng.random() < 0.5), float(rng.uniform(-6, 6))
    e = extent(Placed(entity, 0, 0, 1, flip, tilt))
    size *= _elongation(entity)
    size = min(size, (x1 - x0) / (e[2] - e[0]), (y1 - y0) / (e[3] - e[1]))
    x = float(rng.uniform(x0 - e[0] * size, max(x1 - e[2] * size, x0 - e[0] * size)))
    y = float(rng.uniform(y0 - e[1] * size, max(y1 - e[3] * size, y0 - e[1] * size)))
    return Placed(entity, x, y, size, flip, tilt), (x + e[0] * size, y + e[1] * size, x + e[2] * size, y + e[3] * size)


@lru_cache(maxsize=4096)
def _elongation(entity: Entity) -> float:
    """Return by how much the entity's body is longer than a square one of the same area, at most a fifth."""
    body = extent(Placed(entity, 0, 0, 1), accessories=False)
    return min(1.2, math.sqrt(1 / min(body[2] - body[0], body[3] - body[1])))


def scatter(
    entities: Sequence[Entity],
    low: float,
    high: float,
    rng: np.random.Generator,
    accept: Callable[[Sequence[Box]], bool] = lambda boxes: True,
) -> tuple[Placed, ...]:
    """Place entities of sizes in [low, high] at least GAP apart until `accept(boxes)`; smaller if crowded."""
    for attempt in range(_TRIES):
        top = max(low, high - attempt * (high - low) / 40)
        placed: list[Placed] = []
        boxes: list[Box] = []
        for entity in entities:
            for _ in range(12):
                one, box = _place(entity, float(rng.uniform(low, top)), rng)
                if all(gap(box, other) >= GAP for other in boxes):
                    placed.append(one)
                    boxes.append(box)
                    break
            else:
                break
        if len(placed) == len(entities) and accept(boxes):
            return tuple(placed)
    raise AssertionError(f"{[e.class_name for e in entities]} do not fit at {low} pixels")


def place_related(a: Entity, b: Entity, wanted: Relation, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Place `a` in relation `wanted` to `b`, and in no other relation."""

    def clear(boxes: Sequence[Box]) -> bool:
        held = relation(boxes[0], boxes[1])
        return held[wanted] > 0.62 and all(value < 0.35 for name, value in held.items() if name != wanted)

    cut, edge = float(rng.uniform(29, 35)), SIZE - MARGIN
    halves: tuple[Box, Box] = (MARGIN, MARGIN, edge, cut - GAP / 2), (MARGIN, cut + GAP / 2, edge, edge)
    if wanted in ("left of", "right of"):
        halves = (MARGIN, MARGIN, cut - GAP / 2, edge), (cut + GAP / 2, MARGIN, edge, edge)
    here, there = halves if wanted in ("left of", "above") else halves[::-1]
    for _ in range(_TRIES):
        one, first = _place(a, float(rng.uniform(18, 27)), rng, here)
        two, second = _place(b, float(rng.uniform(18, 27)), rng, there)
        if clear([first, second]):
            return one, two
    raise AssertionError(f"found no place for a {a.class_name} {wanted} a {b.class_name}")
