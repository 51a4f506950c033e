"""Records of the wire: what a caller sends, what it gets back. Frozen, typed, free of torch, ray and HTTP.

Shapes: H, W are pixels; an image is uint8 [H W 3] in RGB, or its encoded bytes until `synod.images` decodes it, or the
digest of one that the service keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from synod.errors import MissingInput, SynodError


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that the service keeps, by the `synod.digest` of what was put: "blake2b-256:" and 64 hex digits."""

    digest: str


class UnreadableImage(bytes):
    """Text that came in an image's place and is not base64, kept as it came: its item fails as BadImage with `why`."""

    why: str


Pixels = NDArray[np.uint8]
ImageData = bytes | Pixels  # an image that is here: encoded, or uint8 [H W 3]
ImageInput = ImageData | ImageRef


def is_raw(pixels: Pixels) -> bool:
    """Whether an array is a raw image: uint8 [H W 3], H and W above 0."""
    return pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0


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
    """GenEval's metadata of one prompt (the `tag`, `include` and `exclude` fields of its JSONL), or GenEval 2's:
    `vqa_list` holds its questions with their expected answers, and `include` is empty then."""

    tag: str
    include: tuple[GenEvalClause, ...]
    exclude: tuple[GenEvalClause, ...] = ()
    vqa_list: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Concept:
    """A personalised concept: its `kind` picks the weights of eq. 34, `class_word` stands in for `token` in prompts."""

    kind: ConceptKind
    class_word: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One image (or text) to score, with everything that some scorer may need. Absent means None or empty.

    `source_prompt` says what the image that was edited shows, which is references[0] where a scorer reads an edit.
    """

    image: ImageInput | None = None
    prompt: str | None = None
    references: tuple[ImageInput, ...] = ()
    reasoning: Reasoning | None = None
    geneval: GenEvalMetadata | None = None
    concept: Concept | None = None
    source_prompt: str | None = None

    def pixels(self) -> Pixels:
        """The decoded image, uint8 [H W 3]. Raises MissingInput when the item has none."""
        if self.image is None:
            raise MissingInput("the item has no 'image'")
        assert isinstance(self.image, np.ndarray), "pixels() before synod.images.decode_item"
        return self.image

    def images(self) -> tuple[ImageData, ...]:
        """The references and the image, as many as are here; those given by digest are not."""
        return tuple([p for p in (*self.references, self.image) if isinstance(p, (bytes, np.ndarray))])

    def reference_pixels(self) -> tuple[Pixels, ...]:
        """The decoded references, each uint8 [H W 3]."""
        decoded = tuple(r for r in self.references if isinstance(r, np.ndarray))
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
class Origin:
    """Who measured a score; scores of equal origin are comparable. `model` is the digest of the model's files,
    `preprocessing` the version of what makes an image the model's input, `rule_set` that of what reads its output."""

    model: str
    preprocessing: str
    rule_set: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value (finite), what it was read from (JSON-able), and who measured it."""

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None


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


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A part of a streamed answer: the outcome of item `index` (0 .. items - 1) by one scorer."""

    request_id: str
    index: int
    scorer: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Rewards:
    """The last part of a streamed answer: one reward per item, in the order of the request; None where unasked."""

    request_id: str
    rewards: tuple[Outcome | None, ...]


@dataclass(frozen=True, slots=True)
class RequestError:
    """The last part of a streamed answer to a request that failed as a whole; parts before it still hold."""

    request_id: str
    error: SynodError


Part = ScoredItem | Rewards | RequestError


@dataclass(frozen=True, slots=True)
class PutImagesRequest:
    """Images that the service should keep, so that requests may name them by digest."""

    images: tuple[ImageData, ...]


@dataclass(frozen=True, slots=True)
class PutImagesResponse:
    """The digest of each image, in the order of the request."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """A scorer: its name, the fields of ScoreItem that it needs, low <= value <= high, its paper, what it measures.

    `model` is the digest of its models' files, as in an Origin. The rest is of a replica that is ready, None while
    there is none: `device` and `dtype` of its models (of most of their bytes), seconds to load, bytes of parameters.
    """

    name: str
    needs: tuple[str, ...]
    low: float
    high: float
    source: str
    summary: str
    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    load_s: float | None = None
    parameter_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EnsembleInfo:
    """How a reward is made of scores. Weights are finite and >= 0, by scorer.

    `weights`: for any item, None where the ensemble has none. `by_kind`: those of items with a concept of that kind.
    `missing`: what a missing score does, "fail" or "renormalise". `clip_at_zero`: whether negative values count as 0.
    """

    weights: Mapping[str, float] | None
    by_kind: Mapping[str, Mapping[str, float]]
    missing: str
    clip_at_zero: bool


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a service serves, and what it lets a request carry: `limits` by name, such as `max_items`."""

    scorers: tuple[ScorerInfo, ...]
    ensembles: Mapping[str, EnsembleInfo] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
