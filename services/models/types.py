"""Records and protocols that scorers exchange with models. Loads no torch."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from synod.contracts import Pixels
from synod.reader import Node

T = TypeVar("T", bound=np.generic)
Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


MAX_ANSWER_TOKENS: Final = 512  # of a judge


class Clip(Protocol):
    """An image and a text encoder with their preparation. Rows have norm 1; long texts are cut at the window's end."""

    def image_features(self, images: Iterable[Pixels]) -> NDArray[np.float32]:
        """Return [N D]; the images may differ in size."""
        ...

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N D]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One object: score in [0, 1], box (x0, y0, x1, y1) in the image's pixels, far edges exclusive.

    `bits` is the mask within the box, eight pixels a byte: 100 masks of a 4096 x 4096 image take 0.2 GiB.
    """

    class_name: str
    score: float
    box: Box
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, class_name: str, score: float, box: Box, mask: Mask) -> Detection:
        """Return the object with the mask `mask` [h w] within its box, whose edges are whole pixels."""
        return cls(class_name, score, box, np.packbits(mask))

    @property
    def mask(self) -> Mask:
        """Return [h w]: the mask within the box."""
        x0, y0, x1, y1 = map(round, self.box)
        flat = np.unpackbits(self.bits, count=(y1 - y0) * (x1 - x0))
        return flat.view(np.bool_).reshape(y1 - y0, x1 - x0)


class Detector(Protocol):
    """`detect` takes images of any sizes and returns one list each, every candidate of `classes` with its score."""

    class_names: tuple[str, ...]

    def detect(
        self, images: Sequence[Pixels], classes: Collection[str] | None = None, least: float = 0.0
    ) -> list[list[Detection]]:
        """Return detections of `classes` (None: all) with a score of at least `least` in float32."""
        ...


def box_of(mask: Mask) -> Box:
    """Return the tight box around a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def within(image: NDArray[T], box: Box) -> NDArray[T]:
    """Return the part of an image or a mask [H W ..] within a box whose edges are whole pixels."""
    x0, y0, x1, y1 = map(round, box)
    return image[y0:y1, x0:x1]


class Form(Protocol):
    """What a verdict looks like: the JSON schema asked for, and the strict reading of what came."""

    def schema(self) -> dict[str, Any]: ...
    def read(self, verdict: Node) -> float: ...


@dataclass(frozen=True, slots=True)
class Graded:
    """A number in [low, high]. The range is a description, because not every server enforces bounds of numbers."""

    low: float
    high: float

    def schema(self) -> dict[str, Any]:
        return _schema("score", {"type": "number", "description": f"from {self.low:g} to {self.high:g}"})

    def read(self, verdict: Node) -> float:
        """Return the value. Raises InvalidRequest."""
        return verdict.fields("reason", "score").need("score", lambda score: score.number(self.low, self.high))


@dataclass(frozen=True, slots=True)
class TrueFalse:
    """true is 1, false 0."""

    def schema(self) -> dict[str, Any]:
        return _schema("valid", {"type": "boolean"})

    def read(self, verdict: Node) -> float:
        """Return the value. Raises InvalidRequest."""
        return float(verdict.fields("reason", "valid").need("valid", Node.boolean))


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few numbers."""

    values: tuple[float, ...]

    def schema(self) -> dict[str, Any]:
        return _schema("score", {"type": "number", "enum": list(self.values)})

    def read(self, verdict: Node) -> float:
        """Return the value. Raises InvalidRequest."""
        score = verdict.fields("reason", "score").need("score", Node.number)
        if score not in self.values:
            raise verdict.error(f"score {score:g}; give one of {', '.join(f'{value:g}' for value in self.values)}")
        return score


@dataclass(frozen=True, slots=True)
class Question:
    """`png` is the image's bytes; None: the question is about its text alone."""

    text: str
    png: bytes | None
    form: Form


@dataclass(frozen=True, slots=True)
class Verdict:
    """`repaired`: whether the first answer could not be read. `tokens`: all that were used, as the server counts."""

    value: float
    reason: str
    repaired: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A question that is answered in the model's own words: the image, then `text`, as published prompts have them.

    `max_tokens` bounds the answer. With `top_logprobs` the server also reports that many of the likeliest first tokens.
    """

    text: str
    png: bytes
    max_tokens: int
    top_logprobs: int | None = None

    def body(self) -> dict[str, Any]:
        """Return the request without the model."""
        about = {} if self.top_logprobs is None else {"logprobs": True, "top_logprobs": self.top_logprobs}
        content = [png_content(self.png), {"type": "text", "text": self.text}]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": self.max_tokens, **about}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer's text. `first` holds the likeliest first tokens as (text, natural log of the probability), where they
    were asked for. `tokens`: all that were used, as the server counts."""

    text: str
    first: tuple[tuple[str, float], ...]
    tokens: int


def png_content(png: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}


def _schema(name: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a verdict. The reason comes first, so that the model gives it before the verdict."""
    properties = {"reason": {"type": "string"}, name: dict(verdict)}
    tree = {"type": "object", "properties": properties, "required": ["reason", name], "additionalProperties": False}
    return {"name": "verdict", "strict": True, "schema": tree}
