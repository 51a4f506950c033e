"""Records of the wire: what a caller sends, what it gets back. Frozen, typed, free of torch, ray and HTTP.

Shapes: H, W are pixels; an image is uint8 [H W 3] in RGB, or its encoded bytes until `synod.images` decodes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from synod.errors import MissingInput, SynodError

Pixels = NDArray[np.uint8]
Picture = bytes | Pixels
ConceptKind = Literal["person", "animal", "object"]
CONCEPT_KINDS: tuple[ConceptKind, ...] = get_args(ConceptKind)
Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An intermediate reasoning text and the candidate segments that it should single out (Sync-R1, eq. 30).

    `truth` is y: one entry per segment, 1.0 where the segment is a right one, else 0.0.
    """

    text: str
    segments: tuple[str, ...]
    truth: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GenEvalClause:
    """`count` objects of `class_name`, of `color` if given, in `position` = (relation, index of the target clause)."""

    class_name: str
    count: int
    color: str | None = None
    position: tuple[Relation, int] | None = None


@dataclass(frozen=True, slots=True)
class GenEvalMetadata:
    """GenEval's metadata of one prompt (the `tag`, `include` and `exclude` fields of its JSONL)."""

    tag: str
    include: tuple[GenEvalClause, ...]
    exclude: tuple[GenEvalClause, ...] = ()


@dataclass(frozen=True, slots=True)
class Concept:
    """A personalised concept: its `kind` picks the weights of eq. 34, `class_word` stands in for `token` in prompts."""

    kind: ConceptKind
    class_word: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One picture (or text) to score, with everything that some scorer may need. Absent means None or empty."""

    image: Picture | None = None
    prompt: str | None = None
    references: tuple[Picture, ...] = ()
    reasoning: Reasoning | None = None
    geneval: GenEvalMetadata | None = None
    concept: Concept | None = None

    def pixels(self) -> Pixels:
        """The decoded image, uint8 [H W 3]. Raises MissingInput when the item has none."""
        if self.image is None:
            raise MissingInput("the item has no 'image'")
        assert not isinstance(self.image, bytes), "pixels() before synod.images.decode_item"
        return self.image

    def pictures(self) -> tuple[Picture, ...]:
        """The references and the image, as many as there are."""
        return self.references if self.image is None else (*self.references, self.image)

    def reference_pixels(self) -> tuple[Pixels, ...]:
        """The decoded references, each uint8 [H W 3]."""
        decoded = tuple(r for r in self.references if not isinstance(r, bytes))
        assert len(decoded) == len(self.references), "reference_pixels() before synod.images.decode_item"
        return decoded


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A batch of items. `scorers` names what to compute; `ensemble` (or `weights`) adds a reward per item.

    `weights` overrides the ensemble's own: scorer name -> finite weight >= 0. `timeout_ms` bounds the whole request.
    """

    items: tuple[ScoreItem, ...]
    scorers: tuple[str, ...] = ()
    ensemble: str | None = None
    weights: Mapping[str, float] | None = None
    timeout_ms: int | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value (finite) and what it was read from (JSON-able)."""

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """A score that does not exist. Never a number: it becomes a mask in the trainer."""

    code: str
    message: str
    retryable: bool = False

    @classmethod
    def of(cls, error: SynodError) -> ScoreFailure:
        return cls(error.code, error.message, error.retryable)


Outcome = Score | ScoreFailure


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Outcome per scorer name, and the ensemble's reward when one was asked for."""

    scores: Mapping[str, Outcome]
    reward: Outcome | None = None


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """One result per item, in the order of the request."""

    results: tuple[ItemResult, ...]
    request_id: str
