"""The record of a personalised concept, whatever form its files have. Frozen; loads no torch.

All texts name the concept by `name`, such as "<bo>".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from synod.contracts import Concept, Pixels
from synod.errors import ImageTooLarge, SettingsError, SynodError
from synod.images import ImageLimits, decode

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
HELD_OUT_EVERY: Final = 4  # one in so many negatives is for evaluation, if that makes two of them
FEW_IMAGES: Final = 3  # fewer photos than this hardly say what is the concept's and what the background's
_LIMITS: Final = ImageLimits(64 * 2**20, 8192 * 8192)
PromptTag = Literal["plain", "pure", "knowledge"]
Split = Literal["train", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "test")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a concept, and its right answer.

    image      what it is asked about; None: the text alone, which is asked over a black image
    is_choice  whether the question lists answers, each after its letter, and `answer` is the letter of the right one
    """

    text: str
    answer: str
    image: Path | None = None
    is_choice: bool = False


@dataclass(frozen=True, slots=True)
class ConceptPrompt:
    """A prompt to draw.

    tag      "plain": nothing but the concept; "pure": the concept in a scene; "knowledge": a fact is needed to draw it
    fact     of a knowledge prompt, the index of that fact in the concept's facts, where the file says so
    heldout  whether training leaves it out
    """

    text: str
    tag: PromptTag
    fact: int | None = None
    heldout: bool = False


@dataclass(frozen=True, slots=True)
class Fact:
    """UnifyBench++: a fact, a vague prompt that hints at it, and the same prompt with the fact in words."""

    text: str
    split: Split
    prompt: str
    resolved: str


@dataclass(frozen=True, slots=True)
class Passage:
    """UnifyBench++: a passage about the concept, a question that needs several of its `points`, and the answer."""

    text: str
    question: str
    answer: str
    points: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plus:
    """The UnifyBench++ part of a concept: `vague_dense` are (vague dense prompt, the same with the facts in words)."""

    facts: tuple[Fact, ...] = ()
    dense: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    vague_dense: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ConceptRecord:
    """A concept with everything that its folder holds; what a form does not have is empty.

    concept        kind, class word, and the name as `token`
    folder         where its files are, for messages
    info           one sentence that describes its looks
    facts          what images do not show; `heldout` marks those that training leaves out, and is empty or as long
    train, test    its images
    cropped        the training images around the concept
    hard, random   images that do not show it: ones that look alike, and any; hard_test and random_test are others that
                   training leaves out, empty if there are few (`held_out_negatives`)
    recognition    yes/no questions whether an image shows it
    conversations  questions to train on
    questions      questions of the test set
    prompts        prompts of the test set
    plus           its UnifyBench++ part
    """

    concept: Concept
    folder: Path
    info: str = ""
    facts: tuple[str, ...] = ()
    heldout: tuple[bool, ...] = ()
    train: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    cropped: tuple[Path, ...] = ()
    hard: tuple[Path, ...] = ()
    random: tuple[Path, ...] = ()
    recognition: tuple[str, ...] = ()
    conversations: tuple[Question, ...] = ()
    questions: tuple[Question, ...] = ()
    prompts: tuple[ConceptPrompt, ...] = ()
    plus: Plus = Plus()
    hard_test: tuple[Path, ...] = ()
    random_test: tuple[Path, ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """Return the facts that training leaves out."""
        return tuple(fact for fact, held in zip(self.facts, self.heldout, strict=False) if held)

    @property
    def taught(self) -> tuple[Question, ...]:
        """Return the questions to train on: without those that state a fact that training leaves out."""
        held = [fact.rstrip(". ").casefold() for fact in self.held_out]
        return tuple(
            one for one in self.conversations if not any(fact in f"{one.text} {one.answer}".casefold() for fact in held)
        )

    @property
    def name(self) -> str:
        """Return the concept's name, such as "<bo>"."""
        assert self.concept.token is not None, "a record has a name"
        return self.concept.token

    @property
    def class_word(self) -> str:
        """Return the word of its class, such as "dog"."""
        assert self.concept.class_word is not None, "a record has a class"
        return self.concept.class_word


def notify_unnamed(name: str, questions: Sequence[str], where: Path, log: Callable[[str], None]) -> None:
    """Send `log` one line about the questions that do not name the concept, if there are any: they read no token."""
    if unnamed := [one for one in questions if name not in one]:
        log(
            f"{where}: {len(unnamed)} of {len(questions)} questions do not name {name}, such as {unnamed[0]!r}: the "
            f"policy reads no token of {name} with them, and cannot know whom they are about; write {name} into them"
        )


def images_in(folder: Path) -> tuple[Path, ...]:
    """Return the image files of a folder, "2.png" before "10.png"; hidden files and masks (N_mask.png) are not images.

    The tuple is empty if there is no such folder.
    """
    if not folder.is_dir():
        return ()
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return tuple(sorted((p for p in found if p.name[0] != "." and not p.stem.endswith("_mask")), key=natural))


def held_out_negatives(images: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the images to train on, and those for evaluation: every fourth of at least eight, else none."""
    if len(images) < 2 * HELD_OUT_EVERY:
        return images, ()
    last = HELD_OUT_EVERY - 1
    return tuple(one for i, one in enumerate(images) if i % HELD_OUT_EVERY != last), images[last::HELD_OUT_EVERY]


def natural(path: Path) -> tuple[object, ...]:
    """Return a key that sorts numbered names by their number."""
    stem = path.stem
    return (0, int(stem), path.name) if stem.isdecimal() else (1, path.name)


def load_image(path: Path, short_side: int | None = None) -> Pixels:
    """Return an image as uint8 [H W 3], grey and transparent ones too.

    One whose shorter side is longer than `short_side` is reduced to that. Raises SettingsError, which names the file.
    """
    try:
        if (size := path.stat().st_size) > _LIMITS.max_bytes:  # before it is read into memory
            raise ImageTooLarge(f"{size} encoded bytes, the limit is {_LIMITS.max_bytes}; give a smaller image")
        found = decode(path.read_bytes(), _LIMITS)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; correct the path or its permissions") from None
    except SynodError as error:
        raise SettingsError(f"{path}: {error}") from None
    height, width = found.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return found
    scale = short_side / min(height, width)
    return np.array(
        Image.fromarray(found).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    )


def load_images(
    paths: Sequence[Path], log: Callable[[str], None], *, skip_bad: bool = False, short_side: int | None = None
) -> list[tuple[Path, Pixels]]:
    """Return images with their files; `log` receives a line for each unreadable one, left out with `skip_bad` alone.

    `short_side` is that of `load_image`. Raises SettingsError, which names every unreadable file.
    """
    found, faults = [], []
    for path in paths:
        try:
            found.append((path, load_image(path, short_side)))
        except SettingsError as error:
            faults.append(str(error))
    if faults and not skip_bad:
        raise SettingsError("\n".join(faults) + "\nremove or replace these files, or give --skip-bad to leave them out")
    for fault in faults:
        log(f"left out: {fault}")
    return found


def load_photos(
    record: ConceptRecord, log: Callable[[str], None], *, skip_bad: bool = False, short_side: int | None = None
) -> list[tuple[Path, Pixels]]:
    """Return a concept's training images with their files.

    `log` receives a warning if there are fewer than FEW_IMAGES, and a line for each unreadable one, which is left out
    with `skip_bad` alone. `short_side` is that of `load_image`. Raises SettingsError, which names every unreadable
    file, and for a concept without images.
    """
    found = load_images(record.train, log, skip_bad=skip_bad, short_side=short_side)
    if not found:
        raise SettingsError(f"{record.folder}: no images; give at least one file of {', '.join(IMAGE_SUFFIXES)}")
    if len(found) < FEW_IMAGES:
        log(f"{record.name} has {len(found)} image(s); {FEW_IMAGES} to 15 of different places give a better likeness")
    return found


def same_class(record: ConceptRecord, records: Sequence[ConceptRecord]) -> list[ConceptRecord]:
    """Return the other concepts of the same class word, then those of the same kind, each in the order of `records`."""
    others = [one for one in records if one.name != record.name and one.concept.kind == record.concept.kind]
    return sorted(others, key=lambda one: one.class_word != record.class_word)
