"""GenEval's rules, pure: what was found in an image and what the prompt asked for -> a verdict (Ghosh et al. 2023).

Four rule sets. All read the same `Found` lists, which `select` makes from a detector's candidates.

* `official`: 1 or 0, GenEval's own reading. Each clause needs at least `count` objects; colour and position look at the
  `count` most confident ones only; a position must hold for all pairs with the target clause's objects; an `exclude`
  clause fails the image when its count is reached.
* `strict`: 1 or 0, as reward-server (flow_grpo) reads it. Each clause needs exactly `count` of all objects found, all
  of them of its colour and in its place; `exclude` is not read, so an image may be right here and wrong by `official`.
* `soft`: in [0, 1], the lineage's reward with two corrections. It is the mean over clauses' terms: the count term
  1 - |want - found| / want over all objects found, and where a clause asks for them a colour term
  1 - |want - matching| / want and a position term (1 or 0); both are 0 when what they rest on failed. Corrected: every
  term is clamped to [0, 1] (16 objects found for one asked gave -14), and a failed position counts 0 (it was appended
  as 0 and then again as 1). `exclude` is not read: an excess already lowers the count term.
* `soft_compat`: in [-14, 1], reward-server's soft score as it is, to compare with runs that it trained. No term is
  clamped: 1 - |1 - 16| / 1 is the least, since at most 16 objects a class are kept. A failed position adds two terms, 0
  and 1; one without a target adds 0; a wrong colour leaves the position out; a wrong count adds one 0 in place of the
  colour and the position together, where the clause asks for either.

Coordinates are pixels, y grows downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from synod.contracts import RELATIONS, GenEvalClause, GenEvalMetadata
from synod.errors import InvalidItem

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
MAX_OBJECTS = 16
POSITION_MARGIN = 0.1
SOFT_COMPAT_LOW = 2.0 - MAX_OBJECTS  # one object asked for, as many found as are kept
THRESHOLD = 0.3  # of an object that any rule set looks at
_COUNTING_THRESHOLD = 0.9

Objects = Mapping[str, Sequence["Found"]]


@dataclass(frozen=True, slots=True)
class Found:
    """One object: box (x0, y0, x1, y1); `index`: its place among the detector's candidates; `color` once classified."""

    class_name: str
    score: float
    box: tuple[float, float, float, float]
    index: int
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value (in the rule set's range) and one sentence for each thing that is not as asked."""

    value: float
    reasons: tuple[str, ...]


def check(metadata: GenEvalMetadata, class_names: Sequence[str]) -> None:
    """Raise InvalidItem for a class, colour, relation, count or target that no rule can decide on."""
    if not metadata.include:
        raise InvalidItem("geneval.include is empty; give at least one clause")
    for number, clause in enumerate((*metadata.include, *metadata.exclude)):
        if clause.class_name not in class_names:
            known = ", ".join(sorted(class_names))
            raise InvalidItem(f"geneval class '{clause.class_name}' is not one that the detector knows: {known}")
        if clause.count < 1:
            raise InvalidItem(f"geneval count {clause.count} of '{clause.class_name}': must be at least 1")
        if clause.color is not None and clause.color not in COLORS:
            raise InvalidItem(f"geneval color '{clause.color}' is not one of {', '.join(COLORS)}")
        if clause.position is not None:
            relation, target = clause.position
            if relation not in RELATIONS:
                raise InvalidItem(f"geneval position '{relation}' is not one of {', '.join(RELATIONS)}")
            if not 0 <= target < number:
                raise InvalidItem(f"geneval position target {target} of clause {number}: must be an earlier clause")


def select(candidates: Sequence[Found], tag: str) -> dict[str, tuple[Found, ...]]:
    """Return by class up to 16 candidates above the tag's threshold, most confident first (of equals the later)."""
    threshold = np.float32(_COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    chosen: dict[str, list[Found]] = {}
    for found in sorted(candidates, key=lambda f: (np.float32(f.score), f.index), reverse=True):
        of_class = chosen.setdefault(found.class_name, [])
        if np.float32(found.score) > threshold and len(of_class) < MAX_OBJECTS:
            of_class.append(found)
    return {name: tuple(objects) for name, objects in chosen.items() if objects}


def color_needs(metadata: GenEvalMetadata, objects: Objects) -> list[Found]:
    """Return the objects whose colour a rule set reads: the top `count` of every colour clause that has that many."""
    needed: dict[int, Found] = {}
    for clause in metadata.include:
        found = objects.get(clause.class_name, ())
        if clause.color is not None and len(found) >= clause.count:
            needed.update({f.index: f for f in found[: clause.count]})
    return list(needed.values())


def official(metadata: GenEvalMetadata, objects: Objects) -> Verdict:
    """Return 1.0 if every include clause holds and no exclude clause does, else 0.0."""
    reasons: list[str] = []
    matched: list[Sequence[Found] | None] = []
    for clause in metadata.include:
        found = objects.get(clause.class_name, ())[: clause.count]
        reason = _count_reason(clause, len(found), "at least")
        if reason is None and clause.color is not None and _of_color(clause, found) < clause.count:
            reason = _color_reason(clause, found)
        if reason is None and clause.position is not None:
            reason = _position_reason(clause, found, matched)
        matched.append(None if reason else found)
        reasons += [reason] if reason else []
    for clause in metadata.exclude:
        found = objects.get(clause.class_name, ())
        if len(found) >= clause.count:
            reasons.append(f"expected fewer than {clause.count} {clause.class_name}, found {len(found)}")
    return Verdict(float(not reasons), tuple(reasons))


def strict(metadata: GenEvalMetadata, objects: Objects) -> Verdict:
    """Return 1.0 if every include clause holds for exactly `count` objects, else 0.0."""
    reasons = _reasons(_exact(metadata, objects))
    return Verdict(float(not reasons), reasons)


def soft(metadata: GenEvalMetadata, objects: Objects) -> Verdict:
    """Return the mean of the include clauses' terms; how many terms there are depends on the metadata alone."""
    readings = _exact(metadata, objects)
    terms: list[float] = []
    for reading in readings:
        clause = reading.clause
        terms.append(max(0.0, _closeness(clause.count, reading.found)))
        terms += [] if clause.color is None else [_closeness(clause.count, reading.matching or 0)]
        terms += [] if clause.position is None else [float(reading.reason is None)]
    return Verdict(sum(terms) / len(terms), _reasons(readings))


def soft_compat(metadata: GenEvalMetadata, objects: Objects) -> Verdict:
    """Return the mean of reward-server's terms; how many there are depends on what fails."""
    readings = _exact(metadata, objects)
    terms: list[float] = []
    for reading in readings:
        clause = reading.clause
        terms.append(_closeness(clause.count, reading.found))
        if reading.found != clause.count:
            terms += [0.0] if clause.color is not None or clause.position is not None else []
            continue
        terms += [] if reading.matching is None else [_closeness(clause.count, reading.matching)]
        terms += _COMPAT_POSITION[reading.position]
    return Verdict(sum(terms) / len(terms), _reasons(readings))


Position = Literal["unread", "no target", "elsewhere", "held"]
_COMPAT_POSITION: Final[Mapping[Position, list[float]]] = {
    "unread": [],
    "no target": [0.0],
    "elsewhere": [0.0, 1.0],
    "held": [1.0],
}


@dataclass(frozen=True, slots=True)
class _Reading:
    """An include clause against all objects of its class.

    `matching`: those of its colour; None where the count is wrong or no colour is asked. `position`: unread where none
    is asked or what it rests on failed. `reason`: the first fault.
    """

    clause: GenEvalClause
    found: int
    matching: int | None
    position: Position
    reason: str | None


def _exact(metadata: GenEvalMetadata, objects: Objects) -> list[_Reading]:
    readings: list[_Reading] = []
    matched: list[Sequence[Found] | None] = []
    for clause in metadata.include:
        found = objects.get(clause.class_name, ())
        reason = _count_reason(clause, len(found), "exactly")
        matching: int | None = None
        position: Position = "unread"
        if clause.color is not None and reason is None:
            matching = _of_color(clause, found)
            reason = None if matching == clause.count else _color_reason(clause, found)
        if clause.position is not None and reason is None:
            reason = _position_reason(clause, found, matched)
            target = matched[clause.position[1]]
            position = "no target" if target is None else "elsewhere" if reason else "held"
        matched.append(None if reason else found)
        readings.append(_Reading(clause, len(found), matching, position, reason))
    return readings


def _reasons(readings: Sequence[_Reading]) -> tuple[str, ...]:
    return tuple(reading.reason for reading in readings if reading.reason is not None)


def relations(a: Found, b: Found) -> set[str]:
    """Return where `a` is relative to `b`: none, one or two of the four relations. In float32, as GenEval's boxes are.

    The offset of the centres, less a tenth of the summed sizes per axis, over the norm of the full offset: beyond
    0.5 on an axis is a relation.
    """
    corners = np.array([a.box, b.box], np.float32).reshape(2, 2, 2)  # object, corner, (x, y)
    centers, sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    revised = np.maximum(np.abs(offset) - np.float32(POSITION_MARGIN) * sizes.sum(axis=0), 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def _closeness(want: int, got: int) -> float:
    return 1.0 - abs(want - got) / want


def _of_color(clause: GenEvalClause, found: Sequence[Found]) -> int:
    return sum(f.color == clause.color for f in found)


def _count_reason(clause: GenEvalClause, found: int, law: str) -> str | None:
    enough = found == clause.count if law == "exactly" else found >= clause.count
    return None if enough else f"expected {law} {clause.count} {clause.class_name}, found {found}"


def _color_reason(clause: GenEvalClause, found: Sequence[Found]) -> str:
    seen = ", ".join(f.color or "unknown" for f in found)
    return (
        f"expected {clause.count} {clause.color} {clause.class_name}, found {_of_color(clause, found)} (colors: {seen})"
    )


def _position_reason(
    clause: GenEvalClause, found: Sequence[Found], matched: Sequence[Sequence[Found] | None]
) -> str | None:
    assert clause.position is not None
    relation, number = clause.position
    targets = matched[number]
    if targets is None:
        return f"no target for {clause.class_name} to be {relation}"
    for a in found:
        for b in targets:
            held = relations(a, b)
            if relation not in held:
                seen = " and ".join(sorted(held)) or "in no relation"
                return f"expected {clause.class_name} {relation} {b.class_name}, found it {seen}"
    return None
