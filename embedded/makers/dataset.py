"""Training images, rendered once and cached as build/weights/<name>.npz (uint8) with a JSON of texts.

The random numbers of a chunk follow from (seed, chunk), so that the images do not depend on the number of processes.
Only training prompts and random individuals are rendered: no held-out prompt, and no concept as an individual.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from embedded import world
from embedded.makers import augment
from embedded.makers.crops import Pixels, color_crop, face_patch, perturb_mask
from embedded.makers.prompts import answers, training_prompt
from embedded.makers.texts import HELD_OUT, scorer_caption
from embedded.world.records import Task, kind_of
from trainer.scenarios import compound

CHUNK = 250
PATCH = 8
COLOR_NAMES = tuple(world.COLORS)
FINE_LABELS = (*world.LABELS, *world.ACCESSORIES)
Arrays = dict[str, Any]
MakeChunk = Callable[[np.random.Generator, int, int], Arrays]


@dataclass(frozen=True)
class Sizes:
    """How much is rendered.

    Scenes with prompts, individuals per class, people for faces, views per individual, the policy's episodes, and the
    flow policy's drawings, and pairs of images for editing.
    """

    scenes: int
    identities: int
    people: int
    views: int
    episodes: int
    drawings: int
    pairs: int


FULL = Sizes(scenes=40_000, identities=220, people=1_600, views=8, episodes=60_000, drawings=60_000, pairs=16_000)
QUICK = Sizes(scenes=64, identities=3, people=6, views=4, episodes=64, drawings=64, pairs=64)
# Shares of the policy's images: GenEval scenes, concepts, described random individuals.
GENEVAL_SHARE, CONCEPT_SHARE = 0.52, 0.28
CONCEPT_TASKS: dict[Task, float] = {"plain": 0.2, "attribute": 0.45, "dense": 0.35}
WORN_SHARE, PLACE_SHARE, COMPANION_SHARE = 0.6, 0.35, 0.2  # of described individuals
OBJECT, ACCESSORY = 1, 2  # in `front`


def scenes(folder: Path, sizes: Sizes) -> Arrays:
    """Return scenes of all tasks: image [N 64 64 3], label [N 64 64], patch and tint [N 8 8], and texts.

    For each 8-pixel patch, `patch` is its main index in FINE_LABELS and `tint` its colour (0 none, else 1 + index).
    `texts` are N lists of {true, off: [false texts]}.
    """
    return cached(folder / f"scenes-{sizes.scenes}", _scene_chunk, seed=11, total=sizes.scenes)


def colors(folder: Path, sizes: Sizes) -> Arrays:
    """Return crop [M 32 32 3] (object on #999), color [M] (index in COLORS), kind [M] (index in CLASSES)."""
    return cached(folder / f"colors-{sizes.scenes}", _color_chunk, seed=12, total=sizes.scenes)


def identities(folder: Path, sizes: Sizes) -> Arrays:
    """Return image [I V 64 64 3], kind [I] (index in CLASSES): V images of each of I random individuals."""
    total = sizes.identities * len(world.CLASSES)
    return cached(folder / f"identities-{total}", partial(_identity_chunk, sizes.views), seed=13, total=total)


def faces(folder: Path, sizes: Sizes) -> Arrays:
    """Return face [I V 48 48 3]: V images of each of I people; the face box is the middle 30 x 30 pixels."""
    return cached(folder / f"faces-{sizes.people}", partial(_face_chunk, sizes.views), seed=14, total=sizes.people)


def episodes(folder: Path, sizes: Sizes) -> Arrays:
    """Return the policy's examples: image [N 64 64 3], front [N 8 8], and texts.

    `front` is OBJECT in patches that show an object, ACCESSORY in those that show an accessory. `texts` are N records:
    `prompts` for the image, the longest last (a concept's prompt is there alone and with an answer appended by
    `trainer.scenarios.compound`), and `asked`, pairs of a question about the image and its answer.
    """
    return cached(folder / f"episodes-{sizes.episodes}", _episode_chunk, seed=15, total=sizes.episodes)


def random_profile(class_name: str, rng: np.random.Generator) -> world.ConceptProfile:
    """Return a profile of `class_name` with a random identity that no concept has."""
    known = {c.identity for c in (*world.CONCEPTS, *world.UNSEEN)}
    while (identity := world.random_identity(class_name, rng)) in known:
        pass
    return replace(
        world.CONCEPTS[0],
        name="<any>",
        kind=kind_of(class_name),
        class_word=class_name,
        identity=identity,
        attributes=(),
    )


def random_accessories(rng: np.random.Generator, share: float = 0.5) -> tuple[tuple[str, str], ...]:
    """Return an accessory in a random colour with probability `share`, else none."""
    if rng.random() >= share:
        return ()
    name = world.ACCESSORIES[rng.integers(len(world.ACCESSORIES))]
    return ((name, COLOR_NAMES[rng.integers(len(COLOR_NAMES))]),)


def _scene_chunk(rng: np.random.Generator, _start: int, count: int) -> Arrays:
    images, labels, patches, tints, texts = [], [], [], [], []
    for _ in range(count):
        prompt = training_prompt(world.TASKS[rng.integers(len(world.TASKS))], rng)
        rendered = world.render(world.scene_for(prompt, rng), rng)
        patch, tint = patch_maps(rendered)
        images.append(rendered.image)
        labels.append(rendered.labels)
        patches.append(patch)
        tints.append(tint)
        texts.append(_captions(prompt, rng))
    maps = {"image": images, "label": labels, "patch": patches, "tint": tints}
    return {**{key: np.stack(value) for key, value in maps.items()}, "texts": texts}


def _episode_chunk(rng: np.random.Generator, _start: int, count: int) -> Arrays:
    images, fronts, texts = [], [], []
    for _ in range(count):
        scene, prompts = _episode(rng)
        rendered = world.render(scene, rng)
        images.append(rendered.image)
        fronts.append(front(rendered.labels))
        texts.append({"prompts": prompts, "asked": world.questions(rendered, rng)})
    return {"image": np.stack(images), "front": np.stack(fronts), "texts": texts}


def _episode(rng: np.random.Generator) -> tuple[world.Scene, list[str]]:
    """Compose a scene, and prompts for it."""
    roll = rng.random()
    if roll >= GENEVAL_SHARE + CONCEPT_SHARE:
        return described(rng)
    if roll < GENEVAL_SHARE:
        prompt = training_prompt(world.GENEVAL_TASKS[rng.integers(len(world.GENEVAL_TASKS))], rng)
    else:
        tasks = tuple(CONCEPT_TASKS)
        prompt = training_prompt(tasks[rng.choice(len(tasks), p=list(CONCEPT_TASKS.values()))], rng)
    text = world.with_commas(prompt.text) if prompt.task == "dense" and rng.random() < 0.5 else prompt.text
    return world.scene_for(prompt, rng), [text, *(compound(text, answer) for answer in answers(prompt, rng))]


def described(rng: np.random.Generator) -> tuple[world.Scene, list[str]]:
    """Compose a random individual and a description of it that is not held out."""
    while True:
        profile = random_profile(world.CLASSES[rng.integers(len(world.CLASSES))], rng)
        worn = random_accessories(rng, WORN_SHARE)
        place = world.PLACES[rng.integers(len(world.PLACES))] if rng.random() < PLACE_SHARE else None
        companion = None
        if rng.random() < COMPANION_SHARE:
            nouns = [noun for noun in world.COLORED if noun != profile.class_word]
            companion = COLOR_NAMES[rng.integers(len(COLOR_NAMES))], nouns[rng.integers(len(nouns))]
        subject = world.describe_some(profile.identity, rng).text
        text = world.described_prompt(subject, worn, companion, place, rng)
        if text not in HELD_OUT:
            return world.individual_scene(profile, rng, worn, companion, place), [text]


def front(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return OBJECT or ACCESSORY for each patch that shows one, else 0: uint8 [8 8]."""
    patches = labels.reshape(8, PATCH, 8, PATCH)
    shown = patches.any((1, 3)).astype(np.uint8)
    worn = (patches == world.LABELS.index("accessory")).sum((1, 3)) >= PATCH
    return np.where(worn, np.uint8(ACCESSORY), shown)


def _captions(prompt: world.Prompt, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the captions that are not held out, each with false texts (one wrong word, then any)."""
    found = []
    for form in (scorer_caption, world.resolve):
        true = form(prompt.text)
        false = [form(world.change_one_word(prompt, rng)) for _ in range(5)]
        false += [world.change_one_word(true, rng)] if form is world.resolve else []
        false += [form(world.wrong_prompt(prompt, rng)) for _ in range(2)]
        off = [text for text in dict.fromkeys(false) if text != true and text not in HELD_OUT]
        if true not in HELD_OUT and off:
            found.append({"true": true, "off": off})
    return found


def patch_maps(rendered: world.Render) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return `patch` and `tint` of `scenes`, uint8 [8 8]."""
    fine, tint = _fine(rendered)
    return _main(fine), _main(tint)


def _fine(rendered: world.Render) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the FINE_LABELS map and the colour map (0 none, else 1 + index), both uint8 [64 64]."""
    fine, tint = rendered.labels.copy(), np.zeros_like(rendered.labels)
    for thing in rendered.instances:
        if thing.color is not None:
            tint[thing.mask] = 1 + COLOR_NAMES.index(thing.color)
        for name, color in thing.accessories:
            worn = rendered.labels == world.LABELS.index("accessory")
            fine[worn], tint[worn] = FINE_LABELS.index(name), 1 + COLOR_NAMES.index(color)
    return fine, tint


def _main(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each 8-pixel patch's most common value above 0; 0 where less than a quarter is above 0."""
    side = len(values) // PATCH
    patches = values.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
    counts = np.stack([np.bincount(patch, minlength=len(FINE_LABELS)) for patch in patches])
    counts[:, 0] = PATCH * PATCH // 4
    main: NDArray[np.uint8] = counts.argmax(1).astype(np.uint8).reshape(side, side)
    return main


def _color_chunk(rng: np.random.Generator, _start: int, count: int) -> Arrays:
    crops, names, kinds = [], [], []
    for _ in range(count):
        task = world.GENEVAL_TASKS[rng.integers(len(world.GENEVAL_TASKS))]
        rendered = world.render(world.scene_for(training_prompt(task, rng), rng), rng)
        image = augment.degrade(rendered.image, rng)
        for thing in rendered.instances:
            if thing.color is not None and thing.identity is None:
                crops.append(color_crop(image, perturb_mask(thing.mask, rng)))
                names.append(COLOR_NAMES.index(thing.color))
                kinds.append(world.CLASSES.index(thing.class_name))
    return {"crop": np.stack(crops), "color": np.array(names, np.uint8), "kind": np.array(kinds, np.uint8)}


def _identity_chunk(views: int, rng: np.random.Generator, start: int, count: int) -> Arrays:
    images, kinds = [], []
    for index in range(start, start + count):
        kind = index % len(world.CLASSES)
        profile = random_profile(world.CLASSES[kind], rng)
        images.append(np.stack([_view(profile, rng).image for _ in range(views)]))
        kinds.append(kind)
    return {"image": np.stack(images), "kind": np.array(kinds, np.uint8)}


def _face_chunk(views: int, rng: np.random.Generator, _start: int, count: int) -> Arrays:
    people = []
    for _ in range(count):
        profile = random_profile("person", rng)
        patches: list[Pixels] = []
        while len(patches) < views:
            rendered = _view(profile, rng)
            box = next((i.face_box for i in rendered.instances if i.face_box is not None), None)
            if box is not None:
                patches.append(face_patch(augment.degrade(rendered.image, rng), box))
        people.append(np.stack(patches))
    return {"face": np.stack(people)}


def _view(profile: world.ConceptProfile, rng: np.random.Generator) -> world.Render:
    return world.render(world.concept_scene(profile, rng, random_accessories(rng)), rng)


def cached(path: Path, draw: MakeChunk, *, seed: int, total: int) -> Arrays:
    """Load the cached arrays, or render them in parallel chunks and cache them."""
    archive, texts = path.with_suffix(".npz"), path.with_suffix(".json")
    if not archive.exists():
        jobs = [(draw, seed, start, min(CHUNK, total - start)) for start in range(0, total, CHUNK)]
        workers = min(2, os.cpu_count() or 1, len(jobs))
        if workers == 1:
            chunks = [_draw(job) for job in jobs]
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                rendered = pool.imap(_draw, jobs)
                chunks = list(tqdm(rendered, total=len(jobs), desc=f"rendering {path.stem}", mininterval=5.0))
        archive.parent.mkdir(parents=True, exist_ok=True)
        texts.write_text(json.dumps([text for chunk in chunks for text in chunk.pop("texts", [])]))
        partial_path = path.with_suffix(".partial.npz")
        joined = {key: np.concatenate([c[key] for c in chunks]) for key in chunks[0]}
        np.savez(partial_path, allow_pickle=False, **joined)
        os.replace(partial_path, archive)
    with np.load(archive, allow_pickle=False) as stored:
        arrays: Arrays = {key: stored[key] for key in stored.files}
    return {**arrays, "texts": json.loads(texts.read_text())}


def _draw(job: tuple[MakeChunk, int, int, int]) -> Arrays:
    draw, seed, start, count = job
    return draw(np.random.default_rng((seed, start)), start, count)


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalise uint8 [N H W 3] to float32 [N 3 H W] in [-1, 1], as the shipped processors do."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0
