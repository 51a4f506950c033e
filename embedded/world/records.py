"""Records of the world: entities, scenes, and the ground truth of an image. Units are pixels.

Boxes are (x0, y0, x1, y1) with an exclusive far edge; x grows rightwards, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedded.world.palette import RGB
from synod.contracts import ConceptKind, GenEvalMetadata, Pixels

SIZE = 64
ANIMALS = ("dog", "cat", "bird", "fish", "turtle")
THINGS = ("ball", "cup", "car", "house", "star", "book", "boat", "key")
CLASSES: tuple[str, ...] = ("person", *ANIMALS, *THINGS)
COLORED: tuple[str, ...] = (*ANIMALS, *THINGS)  # GenEval has no prompts for the colour of a person
# "face" is a part of person; "accessory" keeps hats and balloons out of every object's mask.
LABELS: tuple[str, ...] = ("background", *CLASSES, "face", "accessory")
WORN = ("hat", "scarf", "ribbon")
CARRIED = ("balloon", "flag", "kite")
ACCESSORIES = (*WORN, *CARRIED)
PLACES = ("meadow", "beach", "room", "desert")

Task = Literal[
    "plain", "attribute", "dense", "single_object", "two_object", "counting", "colors", "position", "color_attr"
]
CONCEPT_TASKS: tuple[Task, ...] = ("plain", "attribute", "dense")
GENEVAL_TASKS: tuple[Task, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TASKS: tuple[Task, ...] = (*CONCEPT_TASKS, *GENEVAL_TASKS)
Split = Literal["train", "heldout"]
Box = tuple[float, float, float, float]
Worn = tuple[tuple[str, str], ...]  # (accessory, colour) pairs


def kind_of(class_name: str) -> ConceptKind:
    """Return the concept kind of a class, by which eq. 34 of Sync-R1 selects its weights."""
    return "person" if class_name == "person" else "animal" if class_name in ANIMALS else "object"


@dataclass(frozen=True, slots=True)
class Identity:
    """The looks of an individual.

    field      person              animal                thing
    primary    skin                coat                  body
    secondary  hair                patches, patch        pattern
    accent     shirt               collar                mark
    style      hair style          ear (crest, fin)      -
    pattern    of the shirt        of the coat           of the body
    marks      glasses, beard      collar, eyepatch      one emblem
    """

    class_name: str
    primary: RGB
    secondary: RGB
    accent: RGB
    style: str = "plain"
    pattern: str = "plain"
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """A person, animal or object. `color` is None for persons; without `identity` the body has one colour."""

    class_name: str
    color: str | None = None
    identity: Identity | None = None
    accessories: Worn = ()
    concept: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """An entity in the image: centre and longest side of its body, mirroring, tilt in degrees."""

    entity: Entity
    x: float
    y: float
    size: float
    flip: bool = False
    tilt: float = 0.0


@dataclass(frozen=True, slots=True)
class Backdrop:
    """Tint indices of sky and ground (None: no ground band), horizon height, and a named place or None."""

    sky: int
    ground: int | None = None
    horizon: float = 44.0
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image; later entities are in front."""

    placed: tuple[Placed, ...]
    backdrop: Backdrop


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Ground truth of one entity; `mask` bool [64 64] has its visible pixels without accessories."""

    class_name: str
    color: str | None
    box: Box
    mask: NDArray[np.bool_]
    face_box: Box | None
    concept: str | None
    accessories: Worn
    identity: Identity | None


@dataclass(frozen=True, slots=True, eq=False)
class Render:
    """An image and its ground truth: image uint8 [64 64 3], labels uint8 [64 64] (index in LABELS)."""

    image: Pixels
    labels: NDArray[np.uint8]
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its claims. GenEval prompts have `geneval`; the others have a concept and details."""

    text: str
    task: Task
    split: Split
    geneval: GenEvalMetadata | None = None
    concept: str | None = None
    accessories: Worn = ()
    companion: tuple[str, str] | None = None  # (colour, class) of the second object
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Attribute:
    """A fact that no training render shows, e.g. "<bo> has a red hat"."""

    accessory: str
    color: str
    sentence: str
    heldout: bool


@dataclass(frozen=True, slots=True)
class ConceptProfile:
    """A personalised concept: its token, its looks, and the facts stated about it."""

    name: str
    kind: ConceptKind
    class_word: str
    pronoun: str
    identity: Identity
    info: str
    attributes: tuple[Attribute, ...]
