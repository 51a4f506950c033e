"""`python -m embedded.makers.accept`: what the policy can do before reinforcement learning, on any of its checkpoints.

Every figure is of samples, images and answers, with the sampler of `deploy/configs/embedded.toml`. Prompts are held
out; individuals are random or of `world.UNSEEN`, and no model has seen them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from embedded import world
from embedded.makers.dataset import random_profile
from embedded.makers.metrics import Metric, scores
from embedded.makers.prompts import answers
from embedded.makers.show_o import load_checkpoint, new_policy
from embedded.world.palette import nearest
from embedded.world.visual_questions import NO, YES, about_looks, recognition
from services.models.semantic import Segmenter
from services.scorers import registry
from services.settings import load as load_service
from services.settings_types import ScorerSettings
from synod.contracts import Pixels, ScoreItem
from trainer.policy.base import Policy
from trainer.policy.show_o.loading import load
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.scenarios import compound
from trainer.settings import ShowOSettings
from trainer.settings import load as load_trainer
from trainer.types import Query

ROOT = Path(__file__).resolve().parents[2]
SETTINGS, WEIGHTS = ROOT / "deploy/configs/embedded.toml", ROOT / "embedded/weights"
BATCH, SEED = 24, 77
KINDS = 4  # of images for each concept: two of it, one of its class, one of another
LEAST = KINDS * len(world.CONCEPTS) // 2  # images for each GenEval task, so that all kinds of all concepts are asked
T = TypeVar("T")


def drawn(policy: Policy, prompts: Sequence[str]) -> list[Pixels]:
    """Draw an image of each prompt."""
    images: list[Pixels] = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        begun = policy.start(part, [(SEED, first + i) for i in range(len(part))])
        images += policy.images(policy.denoise(begun, policy.image_steps))
    return images


def geneval(policy: Policy, settings: ScorerSettings, per_task: int) -> dict[str, Metric]:
    """Return GenEval's official share of right images for each task, and `overall`, the mean over tasks."""
    rng = np.random.default_rng(SEED)
    prompts = [p for task in world.GENEVAL_TASKS for p in _several(world.POOLS[task, "heldout"], per_task, rng)]
    images = drawn(policy, [p.text for p in prompts])
    items = [ScoreItem(image, geneval=p.geneval) for image, p in zip(images, prompts, strict=True)]
    right = [bool(score.detail["official"]) for score in scores(registry.build("geneval", settings), items)]
    of_task = np.array([p.task for p in prompts])
    found: dict[str, Metric] = {task: _share(task, np.array(right)[of_task == task]) for task in world.GENEVAL_TASKS}
    return {**found, "overall": Metric("overall", float(np.mean([m.value for m in found.values()])), len(right), None)}


def accessory_color(policy: ShowO, count: int) -> dict[str, Metric]:
    """Return how often an accessory has its prompt's colour, by the detector's pixels; a missing one is wrong.

    Half of the prompts are dense, half vague with the needed fact appended. `found` is the share with an accessory.
    """
    rng = np.random.default_rng(SEED + 1)
    chosen = [p for task in ("attribute", "dense") for p in _several(world.POOLS[task, "heldout"], count // 2, rng)]
    texts = [p.text if p.task == "dense" else compound(p.text, answers(p, rng)[0]) for p in chosen]
    colors = accessory_colors(drawn(policy, texts))
    right = [color == p.accessories[0][1] for color, p in zip(colors, chosen, strict=True)]
    seen = [color is not None for color in colors]
    return {"accessory color": _share("accessory color", right), "accessory found": _share("accessory found", seen)}


def accessory_colors(images: Sequence[Pixels], least: int = 12) -> list[str | None]:
    """Return the name of the median colour of each image's accessory pixels; None for fewer than `least`."""
    detector = Segmenter(WEIGHTS / "detector-world", "cpu")
    found: list[str | None] = [None] * len(images)
    for index, logits in detector.logits(images):
        worn = (logits.argmax(-1) == world.LABELS.index("accessory")).numpy()
        if worn.sum() >= least:
            r, g, b = np.median(images[index][worn], axis=0).round().astype(int).tolist()
            found[index] = nearest((r, g, b))
    return found


def recognised(policy: ShowO, count: int) -> dict[str, Metric]:
    """Return how often the policy says rightly whether a seen concept is shown; half of the images show it."""
    rng = np.random.default_rng(SEED + 2)
    asked, wanted = [], []
    for number in range(count):
        profile = world.CONCEPTS[number % len(world.CONCEPTS)]
        kind = number // len(world.CONCEPTS) % KINDS  # shown twice, then one of its class, then any other concept
        shown = profile
        if kind == 2:
            shown = random_profile(profile.class_word, rng)
        elif kind == 3:
            shown = _pick([other for other in world.CONCEPTS if other != profile], rng)
        rendered = world.render(world.concept_scene(shown, rng), rng)
        text = recognition(rendered.instances[0], rng)[0]
        name = next(word for word in world.CONCEPTS if word.name in text).name
        asked.append(Query(text.replace(name, profile.name), rendered.image))
        wanted.append(YES if kind < 2 else NO)
    said = answered(policy, asked)
    right = np.array([a == b for a, b in zip(said, wanted, strict=True)])
    kinds = np.arange(count) // len(world.CONCEPTS) % KINDS
    return {
        "yes or no": Metric("yes or no", float((right[kinds < 2].mean() + right[kinds >= 2].mean()) / 2), count, None),
        "yes": _share("yes", right[kinds < 2]),
        "no, same class": _share("no, same class", right[kinds == 2]),
        "no, another concept": _share("no, another concept", right[kinds == 3]),
    }


def visual(policy: ShowO, count: int) -> dict[str, Metric]:
    """Return how often answers about unseen individuals are exactly right, and how often they follow the image.

    To follow is to say the image's answer where the name that the question uses has another.
    """
    rng = np.random.default_rng(SEED + 3)
    asked, wanted = [], []
    for number in range(count):
        profile = world.UNSEEN[number % len(world.UNSEEN)]
        image = world.render(world.concept_scene(profile, rng), rng).image
        query, answer = _pick(about_looks(f"the {profile.class_word}", profile.identity), rng)
        asked.append(Query(query, image))
        wanted.append(answer)
    right = [a == b for a, b in zip(answered(policy, asked), wanted, strict=True)]
    asked, wanted, named = [], [], []
    while len(asked) < count:
        concept = _pick(world.CONCEPTS, rng)
        other = random_profile(concept.class_word, rng)
        own, foreign = (dict(about_looks(concept.name, p.identity)) for p in (concept, other))
        query = next(q for q in own if q.startswith(("what color is <", "what hair")))
        if own[query] != foreign[query]:
            asked.append(Query(query, world.render(world.concept_scene(other, rng), rng).image))
            wanted.append(foreign[query])
            named.append(own[query])
    said = answered(policy, asked)
    return {
        "visual, unseen": _share("visual, unseen", right),
        "image's answer": _share("image's answer", [a == b for a, b in zip(said, wanted, strict=True)]),
        "name's answer": _share("name's answer", [a == b for a, b in zip(said, named, strict=True)]),
    }


def answered(policy: ShowO, queries: Sequence[Query]) -> list[str]:
    """Sample an answer of each query."""
    return [policy.answer([query], [(SEED, 9, place)])[0].text for place, query in enumerate(queries)]


def accept(policy: ShowO, settings: ScorerSettings, size: int = 60) -> dict[str, Metric]:
    """Return all figures; `size` images for each GenEval task, and answers in proportion."""
    return {
        **geneval(policy, settings, size),
        **accessory_color(policy, 2 * size),
        **recognised(policy, 2 * size),
        **visual(policy, 2 * size),
    }


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _several(pool: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    return [pool[int(i)] for i in np.resize(rng.permutation(len(pool)), count)]


def _share(name: str, right: Sequence[bool] | np.ndarray) -> Metric:
    return Metric(name, float(np.mean(right)), len(right), None)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = load_trainer(SETTINGS).policy
    assert isinstance(settings, ShowOSettings)
    sampler = Sampling(**settings.sampler.model_dump(), positions=settings.positions)
    parser = argparse.ArgumentParser(
        prog="python -m embedded.makers.accept",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, default=WEIGHTS / "show-o-world", help="directory of the policy")
    parser.add_argument("--checkpoint", type=Path, help="an unfinished training instead, such as build/weights/*.ckpt")
    parser.add_argument("--vq", type=Path, default=WEIGHTS / "magvit-world", help="directory of the image tokenizer")
    parser.add_argument("--size", type=int, default=60, help=f"images for each GenEval task, at least {LEAST} (60)")
    parser.add_argument("--steps", type=int, default=sampler.denoising_steps, help="denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=sampler.guidance_scale, help="guidance scale (%(default)s)")
    parser.add_argument("--temperature", type=float, default=sampler.temperature, help="temperature (%(default)s)")
    options = parser.parse_args(arguments)
    if options.size < LEAST:
        parser.error(
            f"--size {options.size} leaves questions unasked: there are {KINDS} kinds of images for each of "
            f"{len(world.CONCEPTS)} concepts; give at least {LEAST}"
        )
    sampling = replace(
        sampler, denoising_steps=options.steps, guidance_scale=options.guidance, temperature=options.temperature
    )
    if options.checkpoint:
        policy = new_policy(options.vq, sampling)
        step = load_checkpoint(policy, options.checkpoint)
    else:
        policy, step = load(options.policy, vq=options.vq, sampling=sampling), 0
    with torch.no_grad():
        found = accept(policy, load_service(SETTINGS).scorers["geneval"], options.size)
    print(json.dumps({"step": step, **{name: round(m.value, 3) for name, m in found.items()}}))


if __name__ == "__main__":
    main()
