"""The metrics of QUALITY.md, measured by the production loaders and scorers on unseen images.

Each function applies `degrade` to every image before it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded import world
from embedded.judge import Claim, WorldJudge, read_claims
from embedded.makers.dataset import random_accessories, random_profile
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

Degradation = Callable[[Pixels], Pixels]
PER_TASK = 100
CONCEPT_VIEWS, CONCEPT_OTHERS = 20, 8  # images of each concept, and other individuals of its class
FACE_VIEWS, FACE_OTHERS = 50, 30
BATCH = 64


@dataclass(frozen=True)
class Metric:
    """A `value` in [0, 1] over `n` cases (pairs for an AUC); `floor` is the least value to ship.

    `error` is its standard error, where it is not that of a share of `n`.
    """

    name: str
    value: float
    n: int
    floor: float | None
    error: float | None = None


def verdicts(settings: GenEvalSettings, degrade: Degradation, seed: int) -> list[Metric]:
    """Compare GenEval's official verdict with that on the ground truth, on correct and wrong scenes."""
    scorer, rng = registry.build("geneval", settings), np.random.default_rng(seed)
    agreed: dict[str, list[bool]] = {}
    items, truths = [], []
    for task in world.GENEVAL_TASKS:
        for case in range(2 * PER_TASK):
            prompt = _pick(world.POOLS[task, "heldout"], rng)
            rendered = world.render(world.scene_for(prompt if case % 2 else _other(prompt, rng), rng), rng)
            assert prompt.geneval is not None
            truths.append(rules.official(prompt.geneval, _true_objects(rendered)).value)
            items.append(ScoreItem(image=degrade(rendered.image), geneval=prompt.geneval))
    for item, truth, outcome in zip(items, truths, scores(scorer, items), strict=True):
        assert item.geneval is not None
        agreed.setdefault(item.geneval.tag, []).append(outcome.detail["official"] == truth)
    every = [hit for hits in agreed.values() for hit in hits]
    by_task = [Metric(f"verdict, {task}", _mean(hits), len(hits), None) for task, hits in agreed.items()]
    return [Metric("detector: GenEval verdict agrees", _mean(every), len(every), 0.9), *by_task]


def color_accuracy(settings: GenEvalSettings, degrade: Degradation, seed: int) -> list[Metric]:
    """Classify the colour of each single-coloured object in held-out scenes, cut out by its mask."""
    classifier = ColorClassifier(open_clip.load(settings.color_model.model, None, "cpu"))
    rng = np.random.default_rng(seed)
    crops, names, colors = [], [], []
    for case in range(4 * PER_TASK):
        task = world.GENEVAL_TASKS[case % len(world.GENEVAL_TASKS)]
        scene, _ = world.sample(rng, task, "heldout")
        rendered = world.render(scene, rng)
        for thing in rendered.instances:
            if thing.color is not None and thing.identity is None:
                crops.append(
                    cutout(
                        degrade(rendered.image),
                        Detection.of(thing.class_name, 1.0, thing.box, within(thing.mask, thing.box)),
                    )
                )
                names.append(thing.class_name)
                colors.append(thing.color)
    predicted = classifier.classify(crops, names)
    return [Metric("colour named", _mean(a == b for a, b in zip(predicted, colors, strict=True)), len(predicted), 0.9)]


def image_text(settings: ScorerSettings, degrade: Degradation, seed: int) -> list[Metric]:
    """Compare BER of the true prompt with a wrong one and one with a wrong word, on all nine tasks."""
    scorer, rng = registry.build("ber", settings), np.random.default_rng(seed)
    tasks, items = [], []
    for task in world.TASKS:
        for _ in range(PER_TASK):
            scene, prompt = world.sample(rng, task, "heldout")
            image = degrade(world.render(scene, rng).image)
            for text in (prompt.text, world.wrong_prompt(prompt, rng), world.change_one_word(prompt, rng)):
                items.append(ScoreItem(image=image, prompt=text, concept=_concept(text)))
            tasks.append(task)
    values = np.array([score.value for score in scores(scorer, items)]).reshape(-1, 3)
    wrong, one = values[:, 0] > values[:, 1], values[:, 0] > values[:, 2]
    n = len(values)
    totals = [
        Metric("image-text: true above wrong", _mean(wrong), n, 0.9),
        Metric("image-text: true above one word off", _mean(one), n, 0.8),
    ]
    of_task = np.array(tasks)
    return totals + [Metric(f"one word off, {t}", _mean(one[of_task == t]), PER_TASK, None) for t in world.TASKS]


def same_concept(settings: DerSettings, degrade: Degradation, seed: int) -> list[Metric]:
    """AUC of DER's cosine: same concept above different individuals, or different ones of its class."""
    rng = np.random.default_rng(seed)
    images, ids, kinds = _individuals(world.CONCEPTS, CONCEPT_VIEWS, CONCEPT_OTHERS, rng)
    rows = dinov2.load(settings.model, "cpu").embed([degrade(image) for image in images])
    return _separation("DINO: same concept", rows, ids, kinds)


def same_face(settings: FerSettings, degrade: Degradation, seed: int) -> list[Metric]:
    """AUC of FER's cosine over the faces that its finder detects in images of concept people and others."""
    rng = np.random.default_rng(seed)
    people = [profile for profile in world.CONCEPTS if profile.kind == "person"]
    images, ids, kinds = _individuals(people, FACE_VIEWS, FACE_OTHERS, rng)
    images = [degrade(image) for image in images]
    boxes = finder(**dict(settings.finder), device="cpu").largest(images)
    seen = [index for index, box in enumerate(boxes) if box is not None]
    faces = [crop(image, box, settings.margin) for image, box in zip(images, boxes, strict=True) if box is not None]
    rows = embedder(**dict(settings.embedder), device="cpu").embed(faces)
    found = Metric("face found", len(seen) / len(images), len(images), 0.9)
    return [found, *_separation("face: same person", rows, ids[seen], kinds[seen])[:1]]


def right_attribute(settings: ScorerSettings) -> list[Metric]:
    """Measure how often TIER's encoder ranks the true segment first of five. No image is involved."""
    questions = [*world.attribute_questions("train"), *world.attribute_questions("heldout")]
    items = [ScoreItem(reasoning=Reasoning(q.text, q.segments, q.truth)) for q in questions]
    found = scores(registry.build("tier", settings), items)
    guesses = [int(np.argmax(score.detail["similarities"])) for score in found]
    right = [guess == q.truth.index(1.0) for guess, q in zip(guesses, questions, strict=True)]
    return [Metric("TIER: right attribute among 5", _mean(right), len(right), 0.9)]


def judge_agreement(claims: int, degrade: Degradation, seed: int) -> list[Metric]:
    """Compare the verdicts of `embedded.judge` with the truth, on at least `claims` claims; half are false."""
    judge, rng = WorldJudge(), np.random.default_rng(seed)
    agreed: dict[str, list[bool]] = {}
    while sum(map(len, agreed.values())) < claims:
        for task in world.TASKS:
            scene, prompt = world.sample(rng, task, "heldout")
            rendered = world.render(scene, rng)
            seen = judge.evidence(degrade(rendered.image))
            for claim in read_claims(world.resolve(prompt)):
                shown = {instance.class_name for instance in rendered.instances}
                agreed.setdefault(claim.kind, []).append(judge.holds(claim, seen))
                agreed[claim.kind].append(not judge.holds(_false_claim(claim, shown, rng), seen))
    every = [hit for hits in agreed.values() for hit in hits]
    by_kind = [Metric(f"judge, {kind}", _mean(hits), len(hits), None) for kind, hits in agreed.items()]
    return [Metric("judge: verdict on a claim agrees", _mean(every), len(every), 0.9), *by_kind]


def _false_claim(claim: Claim, shown: set[str], rng: np.random.Generator) -> Claim:
    """Return the claim with another place, relation, colour, count or noun."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    if claim.kind == "place":
        return replace(claim, noun=_other_of(world.PLACES, {claim.noun}, rng))
    if claim.kind == "relation":
        return replace(claim, color=opposite[claim.color or ""])
    if claim.color is not None and rng.random() < 0.5:
        return replace(claim, color=_other_of(tuple(world.COLORS), {claim.color}, rng))
    if claim.count > 1 and rng.random() < 0.5:
        return replace(claim, count=claim.count + 1)
    pool, hidden = (world.ACCESSORIES, {claim.noun}) if claim.kind == "accessory" else (world.CLASSES, shown)
    return replace(claim, noun=_other_of(pool, hidden, rng))


def _other_of(options: Sequence[str], known: set[str], rng: np.random.Generator) -> str:
    rest = [option for option in options if option not in known]
    return rest[int(rng.integers(len(rest)))]


def auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Return the probability that a positive exceeds a negative, ties half (Mann-Whitney U / (n m))."""
    ordered = np.sort(negative)
    below, up_to = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + up_to).mean() / 2 / len(negative))


def _separation(name: str, rows: NDArray[np.float32], ids: NDArray[np.int64], kinds: NDArray[np.int64]) -> list[Metric]:
    a, b = np.triu_indices(len(rows), k=1)
    concept = (ids[a] >= 0) | (ids[b] >= 0)  # others (negative ids) pair only with concepts
    a, b = a[concept], b[concept]
    cosine, same, hard = (rows[a] * rows[b]).sum(1), ids[a] == ids[b], kinds[a] == kinds[b]
    total = auc(cosine[same], cosine[~same])
    within = auc(cosine[same], cosine[~same & hard])
    count = int(hard.sum())
    return [Metric(f"{name}, AUC", total, len(a), 0.9), Metric(f"{name}, AUC within its class", within, count, None)]


def _individuals(
    profiles: Sequence[world.ConceptProfile], views: int, others: int, rng: np.random.Generator
) -> tuple[list[Pixels], NDArray[np.int64], NDArray[np.int64]]:
    """Draw `views` images per concept (id: its index) and one of `others` of its class (id < 0)."""
    images: list[Pixels] = []
    ids: list[int] = []
    kinds: list[int] = []
    for index, profile in enumerate(profiles):
        strangers = [random_profile(profile.class_word, rng) for _ in range(others)]
        for number, shown in enumerate([profile] * views + strangers):
            images.append(world.render(world.concept_scene(shown, rng, random_accessories(rng)), rng).image)
            ids.append(index if number < views else -1 - len(ids))
            kinds.append(world.CLASSES.index(profile.class_word))
    return images, np.array(ids), np.array(kinds)


def _true_objects(rendered: world.Render) -> dict[str, tuple[rules.Found, ...]]:
    objects: dict[str, tuple[rules.Found, ...]] = {}
    for index, thing in enumerate(rendered.instances):
        found = rules.Found(thing.class_name, 1.0, thing.box, index, thing.color)
        objects[thing.class_name] = (*objects.get(thing.class_name, ()), found)
    return objects


def _other(prompt: world.Prompt, rng: np.random.Generator) -> world.Prompt:
    """Return another prompt of the task; half of the time one that shares a class."""
    names = {clause.class_name for clause in prompt.geneval.include} if prompt.geneval else set()
    pool = [p for p in world.POOLS[prompt.task, "heldout"] if world.claims(p) != world.claims(prompt)]
    near = [p for p in pool if p.geneval and names & {clause.class_name for clause in p.geneval.include}]
    return _pick(near if near and rng.random() < 0.5 else pool, rng)


def _pick(pool: Sequence[world.Prompt], rng: np.random.Generator) -> world.Prompt:
    return pool[int(rng.integers(len(pool)))]


def _concept(text: str) -> Concept | None:
    profile = next((profile for profile in world.CONCEPTS if profile.name in text), None)
    return None if profile is None else Concept(profile.kind, profile.class_word, profile.name)


def scores(scorer: Scorer, items: Sequence[ScoreItem]) -> Iterator[Score]:
    """Yield the scores in order. Raises RuntimeError for a failure."""
    for start in range(0, len(items), BATCH):
        for outcome in score_batch(scorer, items[start : start + BATCH]):
            if not isinstance(outcome, Score):
                raise RuntimeError(f"{scorer.spec.name} failed while measuring: {outcome}")
            yield outcome


def _mean(hits: Iterable[Any]) -> float:
    return float(np.mean(list(hits)))
