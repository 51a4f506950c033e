"""What each suite asks and draws: the columns of UnifyBench (UniCTokens) and UnifyBench++ (Sync-R1), and of other sets.

    rec            is the concept in this image? its test images; hard negatives; random images
    vqa, qa        questions about an image, and about the concept alone; `_choice`: with answers to choose from
    plain, pure    draw the concept, alone and in scenes
    graded         as pure, for DreamBench++
    people         draw a person, 25 times as often
    knowledge      draw a prompt that needs a fact
    rea            facts and a vague prompt -> the fact, of facts that training left out
    dense_rea      a passage and a question -> an answer of several points
    rea_gen        as rea, then draw the prompt with the answer
    dense_gen      draw a long prompt
    dense_rea_gen  as rea_gen, of a long vague prompt

Pure: the same records, seed and numbers give the same items in the same order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from trainer.evaluate.runner import EVALUATION
from trainer.personalize.readers.shared import UNKNOWN_CLASS
from trainer.personalize.records import ConceptRecord, PromptTag
from trainer.scenarios import textual_query
from trainer.settings.data import TEMPLATES

YES, HARD, RANDOM = "yes", "no, hard", "no, random"
PEOPLE_IMAGES: Final = 25  # times as many: the papers draw 100 where they draw 4 of other prompts
ANSWERS: Final = ("bleu", "judge_text")


@dataclass(frozen=True, slots=True)
class Item:
    """One question, one image to draw, or both: then the image is drawn from the prompt with the answer.

    key        column, concept, number of the question or prompt, number of the image of a prompt; unique
    group      within a column, means are taken over groups first
    query      the question, asked over `shown`, or over a black image if that is None; None: nothing is asked
    prompt     what to draw; None: nothing is drawn
    right      the right answer
    is_choice  whether `right` is the letter of an answer
    target     the text that scorers compare the image with: the prompt with its facts in words; None: nothing is drawn
    points     what a long answer must say
    scorers    the scorers of the service that measure it
    """

    column: str
    concept: str
    number: int
    image: int = 0
    group: str = ""
    query: str | None = None
    shown: Path | None = None
    prompt: str | None = None
    right: str | None = None
    is_choice: bool = False
    target: str | None = None
    points: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.column}/{self.concept}/{self.number}/{self.image}"

    @property
    def file(self) -> str | None:
        """Return the drawn image's file in a folder of answers; None if nothing is drawn."""
        if self.prompt is None:
            return None
        return f"images/{self.concept.strip('<>')}/{self.column}/{self.number}/{self.image}.png"

    def seed(self, seed: int) -> tuple[int, ...]:
        """Return what the random numbers of its answer and image follow from, whatever else is asked or drawn."""
        return (seed, EVALUATION, zlib.crc32(f"{self.column}/{self.concept}/{self.number}".encode()), self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the items of a concept's column follow from besides the concept: all concepts, chance, the textual query."""

    records: Sequence[ConceptRecord]
    rng: np.random.Generator
    template: str


Column = Callable[[ConceptRecord, Context], list[Item]]


def plan(
    records: Sequence[ConceptRecord],
    columns: Sequence[str],
    *,
    images: int = 4,
    limit: int | None = None,
    seed: int = 0,
    template: str = TEMPLATES["plain"],
) -> list[Item]:
    """Return the items of these columns, column by column and concept by concept.

    `images` is the number of images of a prompt; `limit` the number of questions or prompts in a column's group of one
    concept, the first ones; None: all. Negatives follow from `seed` and the concept's name. `template` is the query
    about facts, with {facts}, {prompt} and, if wanted, {name}.
    """
    found = []
    for column in columns:
        for record in records:
            rng = np.random.default_rng([seed, zlib.crc32(record.name.encode())])
            taken: dict[str, int] = {}
            for item in COLUMNS[column](record, Context(records, rng, template)):
                taken[item.group] = taken.get(item.group, 0) + 1
                if limit is not None and taken[item.group] > limit:
                    continue
                times = 1 if item.prompt is None else images * (PEOPLE_IMAGES if column == "people" else 1)
                found += [replace(item, column=column, image=image) for image in range(times)]
    return found


def _recognition(record: ConceptRecord, context: Context) -> list[Item]:
    """Return the items of recognition.

    Hard negatives are other concepts of the class that the set states, else images that look alike, else none. Random
    ones are images of anything, else of other concepts that are not hard negatives.
    """
    count, rng = len(record.test), context.rng
    is_alike = {one.name: _share_class(one, record) for one in context.records if one.name != record.name}
    alike, others = (
        [image for one in context.records if is_alike.get(one.name) is wanted for image in one.test]
        for wanted in (True, False)
    )
    groups = (
        (YES, "Yes", list(record.test)),
        (HARD, "No", _some(alike or record.hard_test or record.hard, count, rng)),
        (RANDOM, "No", _some(record.random_test or record.random or others, count, rng)),
    )
    asked = [record.recognition[int(i)] for i in rng.integers(len(record.recognition), size=count)]
    found = [(group, right, asked[i], image) for group, right, images in groups for i, image in enumerate(images)]
    return [
        Item("", record.name, number, 0, group, query, image, right=right, scorers=("recognition",))
        for number, (group, right, query, image) in enumerate(found)
    ]


def _share_class(one: ConceptRecord, other: ConceptRecord) -> bool:
    """Return whether the set states one class of both."""
    return one.class_word == other.class_word != UNKNOWN_CLASS


def _some(images: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    """Return `count` of the images, or all if there are fewer, drawn without replacement."""
    return [images[int(i)] for i in rng.permutation(len(images))[:count]]


def _questions(with_image: bool, is_choice: bool) -> Column:
    def items(record: ConceptRecord, context: Context) -> list[Item]:
        asked = [q for q in record.questions if (q.image is not None) == with_image and q.is_choice == is_choice]
        return [
            Item(
                *("", record.name, number, 0, "", one.text, one.image),
                right=one.answer,
                is_choice=is_choice,
                scorers=() if is_choice else ANSWERS,
            )
            for number, one in enumerate(asked)
        ]

    return items


def _drawn(tag: PromptTag, scorers: tuple[str, ...], kinds: tuple[str, ...] = ("person", "animal", "object")) -> Column:
    def items(record: ConceptRecord, context: Context) -> list[Item]:
        prompts = [one for one in record.prompts if one.tag == tag] if record.concept.kind in kinds else []
        groups = {False: "", True: "held out"}
        return [
            Item(
                *("", record.name, number, 0, groups[one.heldout and tag == "knowledge"]),
                prompt=one.text,
                target=one.text,
                scorers=scorers,
            )
            for number, one in enumerate(prompts)
        ]

    return items


def _reasoned(scorers: tuple[str, ...], *, draws: bool, asks: bool) -> Column:
    """Return the column of held-out facts: what is asked, what is drawn, or both."""

    def items(record: ConceptRecord, context: Context) -> list[Item]:
        return [
            Item(
                *("", record.name, number),
                query=_with_facts(record, fact.prompt, context),
                prompt=fact.prompt if draws else None,
                right=fact.text if asks else None,
                target=fact.resolved if draws else None,
                scorers=scorers,
            )
            for number, fact in enumerate(one for one in record.plus.facts if one.split == "test")
        ]

    return items


def _passages(record: ConceptRecord, context: Context) -> list[Item]:
    return [
        Item(
            *("", record.name, number),
            query=f"{one.text} {one.question}",
            right=one.answer,
            points=one.points,
            scorers=ANSWERS,
        )
        for number, one in enumerate(record.plus.passages)
    ]


def _dense(record: ConceptRecord, context: Context) -> list[Item]:
    return [
        Item("", record.name, number, prompt=one, target=one, scorers=("dense_validity", "clip_i"))
        for number, one in enumerate(record.plus.dense)
    ]


def _vague_dense(record: ConceptRecord, context: Context) -> list[Item]:
    return [
        Item(
            *("", record.name, number),
            query=_with_facts(record, prompt, context),
            prompt=prompt,
            target=resolved,
            scorers=("dense_validity", "clip_i"),
        )
        for number, (prompt, resolved) in enumerate(record.plus.vague_dense)
    ]


def _with_facts(record: ConceptRecord, prompt: str, context: Context) -> str:
    """Return the query about a prompt that states all facts, in an order of its own."""
    facts = [record.facts[int(i)] for i in context.rng.permutation(len(record.facts))]
    return textual_query(facts, prompt, context.template, record.name)


COLUMNS: Final[Mapping[str, Column]] = {
    "rec": _recognition,
    "vqa": _questions(with_image=True, is_choice=False),
    "vqa_choice": _questions(with_image=True, is_choice=True),
    "qa": _questions(with_image=False, is_choice=False),
    "qa_choice": _questions(with_image=False, is_choice=True),
    "plain": _drawn("plain", ("clip_i",)),
    "pure": _drawn("pure", ("clip_i", "clip_t", "der")),
    "graded": _drawn("pure", ("clip_i", "clip_t", "der", "judge")),
    "people": _drawn("plain", ("fer",), ("person",)),
    "knowledge": _drawn("knowledge", ("knowledge", "clip_i")),
    "rea": _reasoned(ANSWERS, draws=False, asks=True),
    "dense_rea": _passages,
    "rea_gen": _reasoned(("clip_t", "clip_i"), draws=True, asks=False),
    "dense_gen": _dense,
    "dense_rea_gen": _vague_dense,
}
SUITES: Final[Mapping[str, tuple[str, ...]]] = {
    "unify": ("rec", "vqa", "vqa_choice", "qa", "qa_choice", "pure", "people", "knowledge"),
    "unify_pp": ("rea", "dense_rea", "rea_gen", "dense_gen", "dense_rea_gen"),
    "yollava": ("rec", "vqa_choice", "qa_choice", "plain"),
    "mc_llava": ("rec", "vqa", "vqa_choice", "qa", "qa_choice", "plain"),
    "dreambench": ("pure",),
    "dreambench_pp": ("graded",),
}
