"""`python -m embedded.judge`: a judge of the synthetic world, behind OpenAI's chat completions.

It reads a prompt by the world's grammar, as claims, and verifies each in the image: objects, counts, colours and
relations by the detector, an accessory's kind by its place and outline, a place by the colours of the background.
Details such as "floppy ears" are not judged. A message without an image has a right answer and a reply, which are
compared by their words. The judge's agreement with the truth is in QUALITY.md.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from embedded import world
from embedded.world.backdrop import random_backdrop
from embedded.world.language import NUMBERS, plural
from embedded.world.palette import nearest
from embedded.world.records import Placed
from services.models.semantic import Segmenter
from services.models.types import box_of
from synod.contracts import RELATIONS, Pixels, Relation
from synod.errors import SynodError
from synod.images import ImageLimits, decode

WEIGHTS = Path(__file__).resolve().parent / "weights"
RIGHT, REPLY = "Right answer:", "Reply:"  # of a message without an image
FACTS = "Facts:"  # of a message with an image, before the claims
MIN_AREA = 12  # pixels of an object or accessory
EXAMPLES, NEIGHBOURS = 16, 5  # of each accessory on a class, and how many decide
PLACES = 40  # examples of each place
BLACK_SHARE = 0.6  # outlines are black: a body is black only if most of it is
_LIMITS = ImageLimits(16 * 2**20, 4096 * 4096)
_COUNTS = {word: count for count, word in NUMBERS.items()}
_NOUNS = {form: noun for noun in world.CLASSES for form in (noun, plural(noun))}
_ANY = "|".join
_OBJECT = re.compile(
    rf"(?:(?P<count>{_ANY(_COUNTS)}) )?(?:(?P<color>{_ANY(world.COLORS)})(?:-colored)? )?"
    rf"\b(?P<noun>{_ANY(sorted(_NOUNS, key=len, reverse=True))})\b"
)
_WORN = re.compile(rf"(?:(?P<color>{_ANY(world.COLORS)}) )?\b(?P<noun>{_ANY(world.ACCESSORIES)})\b")
_PLACE = re.compile(rf"\b({_ANY(world.PLACES)})\b")
_RELATION = re.compile(_ANY(RELATIONS))


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that a prompt says: `kind` is "object", "accessory", "place" or "relation"."""

    kind: str
    noun: str
    color: str | None = None
    count: int = 1
    other: str | None = None  # of a relation: `noun` is `color` of `other`


def read_claims(text: str) -> list[Claim]:
    """Return what a text claims by the world's grammar, in order; nothing for other words."""
    text = " ".join(text.lower().split())
    objects = [(m.start(), m.end(), m) for m in _OBJECT.finditer(text)]
    found = [Claim("object", _NOUNS[m["noun"]], m["color"], _COUNTS.get(m["count"] or "", 1)) for _, _, m in objects]
    for (_, end, a), (start, _, b) in itertools.pairwise(objects):
        if between := _RELATION.search(text[end:start]):
            found.append(Claim("relation", _NOUNS[a["noun"]], between.group(), other=_NOUNS[b["noun"]]))
    found += [Claim("accessory", m["noun"], m["color"]) for m in _WORN.finditer(text)]
    return found + [Claim("place", m.group(1)) for m in _PLACE.finditer(text)]


@dataclass
class Evidence:
    """What the models find in one image."""

    image: Pixels
    labels: NDArray[np.int64]  # [H W], indices in world.LABELS
    objects: dict[str, list[NDArray[np.bool_]]] = field(default_factory=dict)

    @property
    def worn(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.labels == world.LABELS.index("accessory")
        return found

    @property
    def cloth(self) -> NDArray[np.bool_]:
        """The accessory without its string or pole: the pixels of its colour."""
        name, found = self.color(self.worn), np.zeros_like(self.worn)
        found[self.worn] = [nearest(tuple(pixel)) == name for pixel in self.image[self.worn].tolist()]
        return found

    def color(self, mask: NDArray[np.bool_]) -> str:
        """Return the most common colour name in a mask; black, the outlines' colour, only if most of it is."""
        names, counts = np.unique([nearest(tuple(pixel)) for pixel in self.image[mask].tolist()], return_counts=True)
        shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
        if len(shares) > 1 and shares.get("black", 0.0) < BLACK_SHARE:
            shares.pop("black", None)
        best: str = max(shares, key=lambda name: shares[name])
        return best


class WorldJudge:
    """Verifies claims by the embedded models in `weights`. Threads may share it."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._detector = Segmenter(weights / "detector-world", "cpu")
        self._lock = threading.Lock()

    def evidence(self, image: Pixels) -> Evidence:
        """Look for objects and accessories in uint8 [64 64 3]."""
        from scipy import ndimage

        ((_, logits),) = self._detector.logits([image])
        found = Evidence(image, logits.argmax(-1).cpu().numpy())
        for name in world.CLASSES:
            members = [name, "face"] if name == "person" else [name]
            mask = np.isin(found.labels, [world.LABELS.index(member) for member in members])
            parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
            masks = [parts == number for number in range(1, count + 1)]
            found.objects[name] = [part for part in masks if part.sum() >= MIN_AREA]
        return found

    def holds(self, claim: Claim, seen: Evidence) -> bool:
        """Whether the image shows what the claim says."""
        if claim.kind == "place":
            return self.place(seen) == claim.noun
        if claim.kind == "accessory":
            return self._has(claim, seen)
        masks = seen.objects[claim.noun]
        if claim.kind == "relation":
            others = seen.objects[claim.other or ""]
            return any(_related(a, b, claim.color) for a in masks for b in others if a is not b)
        if claim.color is not None:
            masks = [mask for mask in masks if seen.color(mask) == claim.color]
        return len(masks) == claim.count if claim.count > 1 else bool(masks)

    def _has(self, claim: Claim, seen: Evidence) -> bool:
        if seen.worn.sum() < MIN_AREA:
            return False
        if claim.color is not None and seen.color(seen.worn) != claim.color:
            return False
        return self.accessory(seen) == claim.noun

    def accessory(self, seen: Evidence) -> str:
        """Return the accessory whose place and outline on the largest object are nearest to those of examples."""
        sizes = {name: sum(int(mask.sum()) for mask in masks) for name, masks in seen.objects.items()}
        holder = max(sizes, key=lambda name: sizes[name])
        body = np.logical_or.reduce(seen.objects[holder]) if sizes[holder] else ~seen.worn
        own, known = _outline(seen.cloth, body), self._examples(holder)
        distances = np.array([float(((example - own) ** 2).sum()) for _, example in known])
        near = [known[i][0] for i in distances.argsort()[:NEIGHBOURS].tolist()]
        best: str = max(near, key=lambda name: (near.count(name), -near.index(name)))
        return best

    def place(self, seen: Evidence) -> str | None:
        """Return the place whose background is nearest in colour, or None for a plain backdrop."""
        own = _background(seen.image, seen.labels == 0)
        return min(self._places, key=lambda known: float(np.nansum((known[1] - own) ** 2)))[0]

    @cached_property
    def _places(self) -> list[tuple[str | None, NDArray[np.float64]]]:
        rng = np.random.default_rng(0)
        found: list[tuple[str | None, NDArray[np.float64]]] = []
        for place in (*world.PLACES, *[None] * 4):
            for _ in range(PLACES):
                empty: tuple[Placed, ...] = ()
                image = world.render(world.Scene(empty, random_backdrop(rng, place)), rng).image
                found.append((place, _background(image, np.ones(image.shape[:2], bool))))
        return found

    @lru_cache  # noqa: B019 (a process has one judge)
    def _examples(self, class_name: str) -> list[tuple[str, NDArray[np.float64]]]:
        """Return the outlines of accessories on random individuals of a class."""
        rng, known = np.random.default_rng(1), world.CONCEPTS[0]
        found = []
        for name in world.ACCESSORIES * EXAMPLES:
            shown = replace(known, class_word=class_name, identity=world.random_identity(class_name, rng))
            drawn = world.render(world.concept_scene(shown, rng, ((name, "red"),)), rng)
            seen = Evidence(drawn.image, drawn.labels.astype(np.int64))
            found.append((name, _outline(seen.cloth, drawn.instances[0].mask)))
        return found

    def grade(self, text: str, image: Pixels, facts: str = "") -> tuple[float, str]:
        """Return the share of the text's claims that hold, and the reason; 0 for a text without claims.

        `facts` say which colour an accessory has that the text names without one.
        """
        known = {claim.noun: claim.color for claim in read_claims(facts) if claim.kind == "accessory"}
        with self._lock:
            claims, seen = read_claims(text), self.evidence(image)
            claims = [
                replace(one, color=known.get(one.noun)) if one.kind == "accessory" and one.color is None else one
                for one in claims
            ]
            verdicts = [self.holds(claim, seen) for claim in claims]
        wrong = [claim for claim, held in zip(claims, verdicts, strict=True) if not held]
        reason = "; ".join(f"{one.kind} {one.color or ''} {one.noun}: not shown" for one in wrong) or "all is shown"
        return (float(np.mean(verdicts)), reason) if verdicts else (0.0, "it claims nothing that can be judged")


def grade_text(right: str, reply: str) -> float:
    """Return 1 if a reply says all that the right answer does and no other value, 0.5 for some of it, else 0.

    Values are the world's words: colours, classes, accessories, places, numbers, yes and no.
    """
    wanted, said = _values(right), _values(reply)
    if not wanted:
        return float(_words(right) == _words(reply))
    if said == wanted:
        return 1.0
    return 0.5 if said & wanted and not ({"yes", "no"} & (said ^ wanted)) else 0.0


_VALUES = {*world.COLORS, *world.CLASSES, *world.ACCESSORIES, *world.PLACES, *_COUNTS, "yes", "no", *RELATIONS}


def _values(text: str) -> set[str]:
    return {_NOUNS.get(word, word) for word in _words(text)} & _VALUES


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _background(image: Pixels, shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the background's mean colours in eight bands from top to bottom, [8 3]; NaN where it is hidden."""
    bands = np.array_split(np.arange(len(image)), 8)
    return np.array(
        [image[band][shown[band]].mean(0) if shown[band].sum() > len(band) else [np.nan] * 3 for band in bands]
    )


def _outline(worn: NDArray[np.bool_], body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return place, size and fill of an accessory's mask in units of the body, without left and right: [8]."""
    (x0, y0, x1, y1), (a0, b0, a1, b1) = box_of(worn), box_of(body)
    side = max(a1 - a0, b1 - b0)
    ys, xs = np.nonzero(worn)
    center = np.array([abs(xs.mean() - (a0 + a1) / 2), ys.mean() - (b0 + b1) / 2]) / side
    size, spread = np.array([x1 - x0, y1 - y0]) / side, np.array([xs.std(), ys.std()]) / side
    return np.array([*center, *size, *(2 * spread), worn.sum() / ((x1 - x0) * (y1 - y0)), worn.sum() / side**2])


def _related(a: NDArray[np.bool_], b: NDArray[np.bool_], wanted: str | None) -> bool:
    held: dict[Relation, float] = world.relation(box_of(a), box_of(b))
    return any(name == wanted and value > 0.5 for name, value in held.items())


def app(judge: WorldJudge) -> Starlette:
    """Return the endpoint: POST /v1/chat/completions."""

    async def complete(request: Request) -> JSONResponse:
        try:
            content = await run_in_threadpool(_answer, judge, await request.json())
        except (AttributeError, LookupError, TypeError, ValueError, SynodError) as error:
            return JSONResponse({"error": {"message": f"not a question to this judge: {error}"}}, 400)
        used = {"prompt_tokens": len(str(content)), "completion_tokens": 8}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        return JSONResponse({"object": "chat.completion", "choices": [choice], "usage": used})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


def _answer(judge: WorldJudge, body: dict[str, Any]) -> str:
    parts: Sequence[dict[str, Any]] = body["messages"][0]["content"]
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if urls:
        image = decode(base64.b64decode(urls[0].partition(",")[2]), _LIMITS)
        before, _, claimed = text.rpartition(": ")
        value, reason = judge.grade(claimed, image, before.partition(FACTS)[2])
    else:
        _, _, rest = text.partition(RIGHT)
        right, found, reply = rest.partition(REPLY)
        if not found:
            raise ValueError(f"no image, and no '{RIGHT}' followed by '{REPLY}'")
        value, reason = grade_text(right, reply), "compared by the words of the world"
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    if "valid" in schema.get("properties", {}):
        return json.dumps({"reason": reason, "valid": value == 1.0})
    return json.dumps({"reason": reason, "score": round(value, 3)})


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(
        prog="python -m embedded.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8010, help="on 127.0.0.1 (8010)")
    uvicorn.run(app(WorldJudge()), host="127.0.0.1", port=parser.parse_args().port, log_level="warning")


if __name__ == "__main__":
    main()
