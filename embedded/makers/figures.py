"""The figures of QUALITY.md, measured through the production loaders and scorers on images no maker has seen.

Each function takes `spoil`, applied to every image before it is scored, and returns `Figure`s. N images, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded import world
from embedded.makers.dataset import random_accessories, random_card
from services.models import dinov2, open_clip
from services.models.face import embedder, finder
from services.models.types import Detection, within
from services.scorers import registry
from services.scorers.base import Scorer, score_batch
from services.scorers.der import DerSettings
from services.scorers.fer import FerSettings
from services.scorers.geneval import GenEvalSettings, rules
from services.scorers.geneval.colour import ColorClassifier, cutout
from services.scorers.shared.images import crop
from services.settings_types import ScorerSettings
from synod.contracts import Concept, Pixels, Reasoning, Score, ScoreItem

Spoil = Callable[[Pixels], Pixels]
PER_TASK = 100
CONCEPT_VIEWS, CONCEPT_STRANGERS = 20, 8  # images of each concept, and other individuals of its class
FACE_VIEWS, FACE_STRANGERS = 50, 30
BATCH = 64


@dataclass(frozen=True)
class Figure:
    """`value` in [0, 1] over `n` cases (for an AUC: pairs); `floor` is the least we ship, None where there is none."""

    name: str
    value: float
    n: int
    floor: float | None


def verdicts(settings: GenEvalSettings, spoil: Spoil, seed: int) -> list[Figure]:
    """GenEval's official verdict against the verdict of the same rules on the truth, on right and on wrong scenes."""
    scorer, rng = registry.build("geneval", settings), np.random.default_rng(seed)
    agreed: dict[str, list[bool]] = {}
    items, truths = [], []
    for task in world.GENEVAL_TASKS:
        for case in range(2 * PER_TASK):
            prompt = _pick(world.POOLS[task, "heldout"], rng)
            drawn = world.render(world.scene_for(prompt if case % 2 else _other(prompt, rng), rng), rng)
            assert prompt.geneval is not None
            truths.append(rules.official(prompt.geneval, _true_objects(drawn)).value)
            items.append(ScoreItem(image=spoil(drawn.image), geneval=prompt.geneval))
    for item, truth, outcome in zip(items, truths, scores(scorer, items), strict=True):
        assert item.geneval is not None
        agreed.setdefault(item.geneval.tag, []).append(outcome.detail["official"] == truth)
    every = [hit for hits in agreed.values() for hit in hits]
    by_task = [Figure(f"verdict, {task}", _mean(hits), len(hits), None) for task, hits in agreed.items()]
    return [Figure("detector: GenEval verdict agrees", _mean(every), len(every), 0.9), *by_task]


def color_accuracy(settings: GenEvalSettings, spoil: Spoil, seed: int) -> list[Figure]:
    """The production colour classifier on every plainly coloured object of held-out scenes, cut out by its mask."""
    classifier, rng = (
        ColorClassifier(open_clip.load(settings.color_model.model, None, "cpu")),
        np.random.default_rng(seed),
    )
    crops, names, colors = [], [], []
    for case in range(4 * PER_TASK):
        task = world.GENEVAL_TASKS[case % len(world.GENEVAL_TASKS)]
        scene, _ = world.sample(rng, task, "heldout")
        drawn = world.render(scene, rng)
        for thing in drawn.instances:
            if thing.color is not None and thing.identity is None:
                crops.append(
                    cutout(
                        spoil(drawn.image),
                        Detection.of(thing.class_name, 1.0, thing.box, within(thing.mask, thing.box)),
                    )
                )
                names.append(thing.class_name)
                colors.append(thing.color)
    told = classifier.classify(crops, names)
    return [Figure("colour named", _mean(a == b for a, b in zip(told, colors, strict=True)), len(told), 0.9)]


def image_text(settings: ScorerSettings, spoil: Spoil, seed: int) -> list[Figure]:
    """BER of the true prompt above BER of a wrong one, and of one that is wrong in one word; all nine tasks."""
    scorer, rng = registry.build("ber", settings), np.random.default_rng(seed)
    tasks, items = [], []
    for task in world.TASKS:
        for _ in range(PER_TASK):
            scene, prompt = world.sample(rng, task, "heldout")
            image = spoil(world.render(scene, rng).image)
            for text in (prompt.text, world.wrong_prompt(prompt, rng), world.one_word_off(prompt, rng)):
                items.append(ScoreItem(image=image, prompt=text, concept=_concept(text)))
            tasks.append(task)
    values = np.array([score.value for score in scores(scorer, items)]).reshape(-1, 3)
    wrong, one = values[:, 0] > values[:, 1], values[:, 0] > values[:, 2]
    n = len(values)
    figures = [
        Figure("image-text: true above wrong", _mean(wrong), n, 0.9),
        Figure("image-text: true above one word off", _mean(one), n, 0.8),
    ]
    of_task = np.array(tasks)
    return figures + [Figure(f"one word off, {t}", _mean(one[of_task == t]), PER_TASK, None) for t in world.TASKS]


def same_concept(settings: DerSettings, spoil: Spoil, seed: int) -> list[Figure]:
    """AUC of DER's cosine: two images of one concept above a concept and any other, or another of its class."""
    rng = np.random.default_rng(seed)
    images, who, kinds = _individuals(world.CONCEPTS, CONCEPT_VIEWS, CONCEPT_STRANGERS, rng)
    rows = dinov2.load(settings.model, "cpu").embed([spoil(image) for image in images])
    return _separation("DINO: same concept", rows, who, kinds)


def same_face(settings: FerSettings, spoil: Spoil, seed: int) -> list[Figure]:
    """AUC of FER's cosine over the faces that its own finder finds in images of the concept people and strangers."""
    rng = np.random.default_rng(seed)
    people = [card for card in world.CONCEPTS if card.kind == "person"]
    images, who, kinds = _individuals(people, FACE_VIEWS, FACE_STRANGERS, rng)
    images = [spoil(image) for image in images]
    boxes = finder(**dict(settings.finder), device="cpu").largest(images)
    seen = [index for index, box in enumerate(boxes) if box is not None]
    faces = [crop(image, box, settings.margin) for image, box in zip(images, boxes, strict=True) if box is not None]
    rows = embedder(**dict(settings.embedder), device="cpu").embed(faces)
    found = Figure("face found", len(seen) / len(images), len(images), 0.9)
    return [found, *_separation("face: same person", rows, who[seen], kinds[seen])[:1]]


def right_attribute(settings: ScorerSettings) -> list[Figure]:
    """TIER's encoder: the true segment has the highest similarity among five. No image is involved."""
    questions = [*world.attribute_questions("train"), *world.attribute_questions("heldout")]
    items = [ScoreItem(reasoning=Reasoning(q.text, q.segments, q.truth)) for q in questions]
    told = scores(registry.build("tier", settings), items)
    guesses = [int(np.argmax(score.detail["similarities"])) for score in told]
    right = [guess == q.truth.index(1.0) for guess, q in zip(guesses, questions, strict=True)]
    return [Figure("TIER: right attribute among 5", _mean(right), len(right), 0.9)]


def auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Chance that a random positive is above a random negative, ties half (Mann-Whitney U / (n m))."""
    ordered = np.sort(negative)
    below, up_to = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + up_to).mean() / 2 / len(negative))


def _separation(name: str, rows: NDArray[np.float32], who: NDArray[np.int64], kinds: NDArray[np.int64]) -> list[Figure]:
    a, b = np.triu_indices(len(rows), k=1)
    concept = (who[a] >= 0) | (who[b] >= 0)  # strangers (negative) only serve as the others
    a, b = a[concept], b[concept]
    cosine, same, hard = (rows[a] * rows[b]).sum(1), who[a] == who[b], kinds[a] == kinds[b]
    total = auc(cosine[same], cosine[~same])
    within = auc(cosine[same], cosine[~same & hard])
    count = int(hard.sum())
    return [Figure(f"{name}, AUC", total, len(a), 0.9), Figure(f"{name}, AUC within its class", within, count, None)]


def _individuals(
    cards: Sequence[world.ConceptCard], views: int, strangers: int, rng: np.random.Generator
) -> tuple[list[Pixels], NDArray[np.int64], NDArray[np.int64]]:
    """`views` images of each concept (who = its index), one each of `strangers` others of its class (who < 0)."""
    images: list[Pixels] = []
    who: list[int] = []
    kinds: list[int] = []
    for index, card in enumerate(cards):
        others = [random_card(card.class_word, rng) for _ in range(strangers)]
        for number, shown in enumerate([card] * views + others):
            images.append(world.render(world.concept_scene(shown, rng, random_accessories(rng)), rng).image)
            who.append(index if number < views else -1 - len(who))
            kinds.append(world.CLASSES.index(card.class_word))
    return images, np.array(who), np.array(kinds)


def _true_objects(drawn: world.Render) -> dict[str, tuple[rules.Found, ...]]:
    objects: dict[str, tuple[rules.Found, ...]] = {}
    for index, thing in enumerate(drawn.instances):
        found = rules.Found(thing.class_name, 1.0, thing.box, index, thing.color)
        objects[thing.class_name] = (*objects.get(thing.class_name, ()), found)
    return objects


def _other(prompt: world.Prompt, rng: np.random.Generator) -> world.Prompt:
    """Another prompt of the task, half of the time one about some of the same classes."""
    names = {clause.class_name for clause in prompt.geneval.include} if prompt.geneval else set()
    pool = [p for p in world.POOLS[prompt.task, "heldout"] if world.claims(p) != world.claims(prompt)]
    near = [p for p in pool if p.geneval and names & {clause.class_name for clause in p.geneval.include}]
    return _pick(near if near and rng.random() < 0.5 else pool, rng)


def _pick(pool: Sequence[world.Prompt], rng: np.random.Generator) -> world.Prompt:
    return pool[int(rng.integers(len(pool)))]


def _concept(text: str) -> Concept | None:
    card = next((card for card in world.CONCEPTS if card.name in text), None)
    return None if card is None else Concept(card.kind, card.class_word, card.name)


def scores(scorer: Scorer, items: Sequence[ScoreItem]) -> Iterator[Score]:
    """Outcomes in order; every one must be a score."""
    for start in range(0, len(items), BATCH):
        for outcome in score_batch(scorer, items[start : start + BATCH]):
            if not isinstance(outcome, Score):
                raise RuntimeError(f"{scorer.spec.name} failed while measuring: {outcome}")
            yield outcome


def _mean(hits: Iterable[Any]) -> float:
    return float(np.mean(list(hits)))
