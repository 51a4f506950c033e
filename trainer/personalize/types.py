"""Records of personalization. They import nothing that does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from synod.contracts import ConceptKind

Talk = tuple[str, str]  # a query and its answer
TEXT_ONLY: Final = "text_only"  # the key of questions that need no image
ItemKind = Literal["positive", "random", "hard", "conversation", "text_only"]


@dataclass(frozen=True, slots=True)
class Item:
    """A question about an image and its answer. `image` None is the black image."""

    image: Path | None
    query: str
    answer: str
    kind: ItemKind


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept's folder in UnifyBench's published layout (Sync-R1 sec. 4.1), as paths and texts.

    name           "<bo>"; prompts, queries and answers use it
    class_word     "dog", "stuffed animal"
    extra_info     facts that no image shows
    train, test    images of the concept
    cropped        the training images cut to the concept; stage 2 draws them (empty: it draws `train`)
    random, hard   images without the concept: any images, and images of its class
    positives      recognition questions for an image with the concept, negatives for one without, with their answers
    conversations  by a training image's file name, or TEXT_ONLY: questions and answers
    prompts        what its test images are drawn from; number i is about number i of `extra_info`
    """

    name: str
    kind: ConceptKind
    class_word: str
    info: str
    extra_info: tuple[str, ...] = ()
    train: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    cropped: tuple[Path, ...] = ()
    random: tuple[Path, ...] = ()
    hard: tuple[Path, ...] = ()
    positives: tuple[Talk, ...] = ()
    negatives: tuple[Talk, ...] = ()
    conversations: Mapping[str, tuple[Talk, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
