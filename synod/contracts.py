"""Define the records that travel on the wire. They are frozen and typed, and need no torch, ray or HTTP.

Types, defaults and `Annotated` metadata are all that the formats know of a field: `synod.records` reads and writes
JSON and msgpack by them, `synod.protobuf` pairs them with `protos/synod/v1/reward.proto` by name, and the gateway makes
its OpenAPI document of them. A text in `Annotated` describes the field there.

Shapes: H, W are pixels; an image is uint8 [H W 3] in RGB, or its encoded bytes until `synod.images` decodes it, or the
digest of one that the service keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np

from synod.errors import MissingInput, SynodError, UnknownImage, error_of


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest value of a number."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Pattern:
    """The regular expression of a whole text, and in words what it asks for."""

    regex: str
    words: str


@dataclass(frozen=True, slots=True)
class NotEmpty:
    """A list of at least one entry; `entry` names one in messages."""

    entry: str


@dataclass(frozen=True, slots=True)
class Wire:
    """How a field travels in JSON and msgpack, where it differs from the usual.

    `key` is its name there, instead of the field's own. A field with a default may be absent, and is left out when it
    is None or an empty tuple, unless it is `required` or `always` written. Fields that are `last` follow the others.
    """

    key: str | None = None
    required: bool = False
    always: bool = False
    last: bool = False


Weight = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]
Seconds = Annotated[float, Bounds(0)]
Index = Annotated[int, Bounds(0)]
Count = Annotated[int, Bounds(1)]
DIGEST_PREFIX: Final = "blake2b-256:"
Digest = Annotated[
    str,
    Pattern(DIGEST_PREFIX + "[0-9a-f]{64}", f"a digest is '{DIGEST_PREFIX}' and 64 lower-case hex digits"),
    "BLAKE2b-256 of a header line and the bytes as they were sent (docs/wire.md)",
]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that the service keeps, by the `synod.digest` of what was put: "blake2b-256:" and 64 hex digits."""

    digest: Digest


class UnreadableImage(bytes):
    """The text of an image that is not valid base64. Its item fails as BadImage with the reason `why`."""

    why: str


Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # not NDArray: an alias that newer numpy does not take apart
ImageData = bytes | Pixels  # the image itself: encoded, or uint8 [H W 3]
ImageInput = ImageData | ImageRef


def is_raw(pixels: Pixels) -> bool:
    """Return whether an array is a raw image: uint8 [H W 3], H and W above 0."""
    return pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0


ConceptKind = Literal["person", "animal", "object"]
CONCEPT_KINDS: tuple[ConceptKind, ...] = get_args(ConceptKind)
Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An intermediate reasoning text and the candidate segments that it should single out (Sync-R1, eq. 30)."""

    text: str
    segments: tuple[str, ...]
    truth: Annotated[tuple[Fraction, ...], "one entry per segment: 1 where it is correct, else 0"]


@dataclass(frozen=True, slots=True)
class GenEvalClause:
    """`count` objects of `class_name`, of `color` if given, in `position` relative to the target clause."""

    class_name: Annotated[str, Wire(key="class")]
    count: Count
    color: str | None = None
    position: Annotated[tuple[Relation, Index], "[relation, index of an 'include' clause]"] | None = None


@dataclass(frozen=True, slots=True)
class GenEvalMetadata:
    """GenEval's metadata of one prompt (the `tag`, `include` and `exclude` fields of its JSONL), or GenEval 2's:
    `vqa_list` holds its questions with their expected answers, and `include` is empty then."""

    tag: str
    include: tuple[GenEvalClause, ...]
    exclude: tuple[GenEvalClause, ...] = ()
    vqa_list: tuple[Annotated[tuple[str, str], "[question, expected answer]"], ...] = ()


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a concept: a sentence about its looks, and facts that images need not show."""

    info: str | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Concept:
    """A personalised concept: its `kind` picks the weights of eq. 34, `class_word` stands in for `token` in prompts."""

    kind: ConceptKind
    class_word: str | None = None
    token: str | None = None
    about: Annotated[About | None, "what a judge may know of the concept"] = None


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One image (or text) to score, with everything that some scorer may need. Absent means None or empty."""

    image: ImageInput | None = None
    prompt: str | None = None
    references: tuple[ImageInput, ...] = ()
    reasoning: Reasoning | None = None
    geneval: GenEvalMetadata | None = None
    concept: Concept | None = None
    source_prompt: Annotated[str | None, "what the image showed before the edit: the first of references"] = None

    def pixels(self) -> Pixels:
        """Return the decoded image, uint8 [H W 3]. Raises MissingInput when the item has none."""
        if self.image is None:
            raise MissingInput("the item has no 'image'")
        assert isinstance(self.image, np.ndarray), "pixels() before synod.images.decode_item"
        return self.image

    def images(self) -> tuple[ImageData, ...]:
        """Return the references and the image, except those given by digest."""
        return tuple([p for p in (*self.references, self.image) if isinstance(p, (bytes, np.ndarray))])

    def inputs(self) -> dict[str, object]:
        """Return all fields by name, except `image` and `references`, which hold the item's images."""
        return {name: getattr(self, name) for name in ITEM_FIELDS if name not in ("image", "references")}

    def reference_pixels(self) -> tuple[Pixels, ...]:
        """Return the decoded references, each uint8 [H W 3]."""
        decoded = tuple(r for r in self.references if isinstance(r, np.ndarray))
        assert len(decoded) == len(self.references), "reference_pixels() before synod.images.decode_item"
        return decoded


ITEM_FIELDS: Final = tuple(one.name for one in fields(ScoreItem))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A batch of items. `scorers` names what to compute; `ensemble` (or `weights`) adds a reward per item."""

    items: Annotated[tuple[ScoreItem, ...], NotEmpty("item")]
    scorers: Annotated[tuple[str, ...], "names of GET /v1/scorers", Wire(always=True)] = ()
    ensemble: Annotated[str | None, "adds a reward per item"] = None
    weights: Annotated[Mapping[str, Weight] | None, "scorer name -> weight; replaces the ensemble's own"] = None
    timeout_ms: Annotated[Count | None, "bounds the whole request"] = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What computed a score: scores of equal origin are comparable."""

    model: Annotated[str, "digest of the model's files"]
    preprocessing: Annotated[str, "version of what makes an image the model's input"]
    rule_set: Annotated[str | None, "version of the rules that read the model's output"] = None


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value (finite), what it was read from (JSON-able), and what computed it."""

    value: float
    detail: Annotated[Mapping[str, Any], Wire(always=True)] = field(default_factory=dict)
    origin: Annotated[Origin | None, "what computed it: scores of equal origin are comparable"] = None


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """A score that does not exist. Never a number: it becomes a mask in the trainer."""

    code: str
    message: Annotated[str, Wire(last=True)]
    retryable: Annotated[bool, Wire(required=True)] = False

    @classmethod
    def of(cls, error: SynodError) -> ScoreFailure:
        return cls(error.code, error.message, error.retryable)


Outcome = Score | ScoreFailure


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Outcome per scorer name, and the ensemble's reward when one was asked for."""

    scores: Mapping[str, Outcome]
    reward: Annotated[Outcome | None, Wire(always=True)] = None


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """One result per item, in the order of the request."""

    results: Annotated[tuple[ItemResult, ...], Wire(last=True)]
    request_id: str


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """The fields of a request's error: a SynodError travels as {"error": these}."""

    code: str
    retryable: bool
    message: str
    digests: Annotated[tuple[Digest, ...], "of unknown_image: what to upload before asking again"] = ()
    retry_after_s: Annotated[Seconds | None, "seconds to wait, where the service knows"] = None

    @classmethod
    def of(cls, error: SynodError) -> ErrorFields:
        digests = error.digests if isinstance(error, UnknownImage) else ()
        return cls(error.code, error.retryable, error.message, digests, error.retry_after_s)

    def error(self) -> SynodError:
        """Return the error that the code stands for."""
        more: Any = {"digests": self.digests, "retry_after_s": self.retry_after_s}
        return error_of(self.code, self.message, retryable=self.retryable, **more)


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A part of a streamed answer: the outcome of item `index` (0 .. items - 1) by one scorer."""

    request_id: str
    index: Index
    scorer: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Rewards:
    """The last part of a streamed answer: one reward per item, in the order of the request; None where unasked."""

    request_id: str
    rewards: tuple[Outcome | None, ...]


@dataclass(frozen=True, slots=True)
class RequestError:
    """The last part of a streamed answer to a request that failed as a whole; earlier parts remain valid."""

    request_id: str
    error: SynodError


Part = ScoredItem | Rewards | RequestError


@dataclass(frozen=True, slots=True)
class PutImagesRequest:
    """Images that the service should keep, so that requests may name them by digest."""

    images: Annotated[tuple[ImageData, ...], NotEmpty("image")]


@dataclass(frozen=True, slots=True)
class PutImagesResponse:
    """The digest of each image, in the order of the request."""

    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """A scorer: its name, the fields of ScoreItem that it needs, low <= value <= high, its paper, what it measures.

    The fields from `device` on describe a replica that is ready, and are None while there is none.
    """

    name: str
    needs: tuple[str, ...]
    low: float
    high: float
    source: str
    summary: str
    model: Annotated[str | None, "digest of its models' files, as in a score's origin"] = None
    device: Annotated[str | None, "of a replica that is ready, as all below; absent while there is none"] = None
    dtype: Annotated[str | None, "of most bytes of its models"] = None
    load_s: Annotated[Seconds | None, "seconds to load"] = None
    parameter_bytes: Annotated[Index | None, "bytes of its models' parameters"] = None


@dataclass(frozen=True, slots=True)
class EnsembleInfo:
    """How a reward is made of scores. Weights are finite and >= 0, by scorer."""

    weights: Annotated[Mapping[str, Weight] | None, "of any item; absent where there are weights by concept kind only"]
    by_kind: Annotated[Mapping[str, Mapping[str, Weight]], "of items with a concept of a kind: these replace 'weights'"]
    missing: Annotated[Literal["fail", "renormalise"], "what a missing score does to the reward"]
    clip_at_zero: Annotated[bool, "whether a negative value counts as 0"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a service serves, and what it lets a request carry: `limits` by name, such as `max_items`."""

    scorers: tuple[ScorerInfo, ...]
    ensembles: Annotated[Mapping[str, EnsembleInfo], Wire(always=True)] = field(default_factory=dict)
    limits: Annotated[Mapping[str, Index], Wire(always=True)] = field(default_factory=dict)
