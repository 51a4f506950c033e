"""The unseen concepts in UnifyBench's published layout: the files of embedded/data/unify.

`python -m embedded.world.unify OUT "<bo>,<ada>"` writes other concepts in the same layout.

    black_64x64.png  concepts_list.json  template.json  pure_generation.json  random_images/0..99.png
    concept/train/train_images.json
    concept/train/<c>/{0..11.png, cropped/0..11.png, info, conversations, positive_recognitions, random_recognitions,
                       plus}.json
    concept/test/<c>/{0..4.png, vqa, text_only, t2i_conditions}.json

`plus.json` has what UnifyBench++ needs, which is not published: facts in two splits, dense prompts, dense reasoning and
dense generation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedded.world.concepts import UNSEEN, profile_of
from embedded.world.conversations import conversations
from embedded.world.descriptions import with_commas
from embedded.world.false_prompts import resolve
from embedded.world.identities import random_identity
from embedded.world.language import AT_PLACE, listed, parts, verb, with_article
from embedded.world.palette import COLORS
from embedded.world.prompts import attribute_prompt, dense_prompt
from embedded.world.records import CLASSES, COLORED, PLACES, SIZE, WORN, Attribute, ConceptProfile
from embedded.world.render import render
from embedded.world.scenes import concept_scene, training_renders
from embedded.world.visual_questions import NO, RECOGNITION, YES, about_looks
from synod.contracts import Pixels
from synod.images import encode_png

TEST_IMAGES, RANDOM_IMAGES, PURE_PROMPTS = 5, 100, 25
_DENSE_PER_FACT = 2
Json = Any


def files(profiles: Sequence[ConceptProfile] = UNSEEN) -> Iterator[tuple[str, Pixels | str]]:
    """Yield every file as (path under embedded/data, image or text); deterministic."""
    for name, content in _files(profiles):
        yield f"unify/{name}", content if isinstance(content, np.ndarray) else json.dumps(content, indent=1) + "\n"


def texts() -> Iterator[str]:
    """Yield every text that a policy reads or says."""
    for profile in UNSEEN:
        for _, content in (*_train("", profile, []), *_test("", profile)):
            if not isinstance(content, np.ndarray):
                yield from _leaves(content)
    for kind in ("person", "animal", "object"):
        yield from pure_generation(kind)


def _leaves(content: Json) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _leaves(part)


def pure_generation(kind: str) -> list[str]:
    """Return 25 prompts for concepts of a kind, with {} for the name: places, wear and colours."""
    rng = np.random.default_rng([41, *kind.encode()])
    found = [f"a photo of {{}} {place}" for place in AT_PLACE.values()]
    while len(found) < PURE_PROMPTS:
        color, thing = _pick(tuple(COLORS), rng), _pick(WORN, rng)
        text = f"a photo of {{}} {verb(thing)} {with_article(f'{color} {thing}')}"
        text += f" {AT_PLACE[_pick(PLACES, rng)]}" if rng.random() < 0.5 else ""
        if kind == "object" and rng.random() < 0.5:
            text = f"a photo of {{}} next to {with_article(f'{color} {_pick(COLORED, rng)}')}"
        found += [text] if text not in found else []
    return found


def _files(profiles: Sequence[ConceptProfile]) -> Iterator[tuple[str, Pixels | Json]]:
    rng = np.random.default_rng(40)
    yield "black_64x64.png", np.zeros((SIZE, SIZE, 3), np.uint8)
    yield "concepts_list.json", [_short(profile) for profile in profiles]
    yield "template.json", {"recognition": list(RECOGNITION), "yes": YES, "no": NO}
    yield "pure_generation.json", {kind: pure_generation(kind) for kind in ("person", "animal", "object")}
    for number in range(RANDOM_IMAGES):
        look = random_identity(CLASSES[number % len(CLASSES)], rng)
        other = ConceptProfile("<any>", "object", look.class_name, "its", look, "", ())
        yield f"random_images/{number}.png", render(concept_scene(other, rng), rng).image
    names = [f"{number}.png" for number in range(len(training_renders(profiles[0])))]
    yield "concept/train/train_images.json", {_short(profile): names for profile in profiles}
    for profile in profiles:
        yield from _train(f"concept/train/{_short(profile)}", profile, names)
        yield from _test(f"concept/test/{_short(profile)}", profile)


def _train(folder: str, profile: ConceptProfile, names: list[str]) -> Iterator[tuple[str, Pixels | Json]]:
    for name, rendered in zip(names, training_renders(profile), strict=bool(names)):
        yield f"{folder}/{name}", rendered.image
        yield f"{folder}/cropped/{name}", _cropped(rendered.image, rendered.instances[0].box)
    person, animal = profile.kind == "person", profile.kind == "animal"
    yield (
        f"{folder}/info.json",
        {
            "class": profile.class_word,
            "info": profile.info,
            "extra_info": [fact.sentence for fact in profile.attributes],
            "conversation_type": "human" if person else "object",
            "generation_type": "live_subject" if person or animal else "object",
        },
    )
    talks = [{"query": query, "answer": answer} for query, answer in conversations(profile)]
    known = [{"query": q, "answer": a} for fact in profile.attributes for q, a in (_about_fact(profile, fact),)]
    yield f"{folder}/conversations.json", {**dict.fromkeys(names, talks), "text_only": [*talks, *known]}
    asked = [template.format(profile.name) for template in RECOGNITION]
    yield f"{folder}/positive_recognitions.json", [{"query": query, "answer": YES} for query in asked]
    yield f"{folder}/random_recognitions.json", [{"query": query, "answer": NO} for query in asked]
    yield f"{folder}/plus.json", _plus(profile)


def _test(folder: str, profile: ConceptProfile) -> Iterator[tuple[str, Pixels | Json]]:
    rng = np.random.default_rng([42, *profile.name.encode()])
    for number in range(TEST_IMAGES):
        yield f"{folder}/{number}.png", render(concept_scene(profile, rng), rng).image
    asked = [{"query": query, "answer": answer} for query, answer in about_looks(profile.name, profile.identity)]
    yield f"{folder}/vqa.json", {f"{number}.png": asked for number in range(TEST_IMAGES)}
    facts = [_about_fact(profile, fact) for fact in profile.attributes]
    text = [{"type": "text_only", "query": query, "answer": answer} for query, answer in facts]
    yield f"{folder}/text_only.json", [*text, *(_choice(profile, fact, rng) for fact in profile.attributes)]
    vague = [_vague(profile, fact) for fact in profile.attributes]
    yield f"{folder}/t2i_conditions.json", {"personalized_driven_generation": vague}


def _plus(profile: ConceptProfile) -> Json:
    rng = np.random.default_rng([43, *profile.name.encode()])
    facts, dense, vague_dense = [], [], []
    for fact in profile.attributes:
        text = _vague(profile, fact)
        split = "test" if fact.heldout else "train"
        facts.append({"text": fact.sentence, "split": split, "prompt": text, "resolved": resolve(text)})
        for _ in range(_DENSE_PER_FACT):
            noun = _pick(tuple(noun for noun in COLORED if noun != profile.class_word), rng)
            worn, companion = (fact.accessory, fact.color), (_pick(tuple(COLORS), rng), noun)
            prompt = with_commas(dense_prompt(profile, worn, companion, _pick(PLACES, rng), "heldout").text)
            dense.append({"prompt": prompt})
            hint = prompt.replace(with_article(f"{fact.color} {fact.accessory}"), f"{profile.pronoun} {fact.accessory}")
            vague_dense.append({"prompt": hint, "resolved": prompt})
    points = [*parts(profile.identity), *(f"{fact.color} {fact.accessory}" for fact in profile.attributes)]
    passage = f"{profile.info} " + ". ".join(fact.sentence for fact in profile.attributes) + "."
    things = listed([with_article(f"{fact.color} {fact.accessory}") for fact in profile.attributes])
    reasoning = {
        "passage": passage,
        "question": f"what does {profile.name} look like, and what does {profile.name} have?",
        "answer": f"{profile.info} {profile.name} has {things}.",
        "points": points,
    }
    return {"facts": facts, "dense": dense, "dense_reasoning": [reasoning], "dense_generation": vague_dense}


def _vague(profile: ConceptProfile, fact: Attribute) -> str:
    return attribute_prompt("a photo of {}", profile, (fact.accessory, fact.color), "heldout").text


def _about_fact(profile: ConceptProfile, fact: Attribute) -> tuple[str, str]:
    return f"what color is the {fact.accessory} of {profile.name}?", f"{fact.sentence}."


def _choice(profile: ConceptProfile, fact: Attribute, rng: np.random.Generator) -> Json:
    """Return a question with two answers, one of them right."""
    other = _pick(tuple(color for color in COLORS if color != fact.color), rng)
    options = [fact.color, other] if rng.random() < 0.5 else [other, fact.color]
    query = f"what color is the {fact.accessory} of {profile.name}? a. {options[0]} b. {options[1]}"
    return {"type": "text_only_choice", "query": query, "answer": "ab"[options.index(fact.color)]}


def _cropped(image: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """Return the square around `box` (at most the image), enlarged to the image's size."""
    side = min(SIZE, int(max(box[2] - box[0], box[3] - box[1])) + 4)
    left, top = (int(min(max(0, (box[i] + box[i + 2] - side) / 2), SIZE - side)) for i in (0, 1))
    part = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _short(profile: ConceptProfile) -> str:
    return profile.name.strip("<>")


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.world.unify", description="Write concepts for UnifyBench."
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("concepts", help="names, such as '<bo>,<ada>'")
    options = parser.parse_args()
    for name, content in files([profile_of(one) for one in options.concepts.split(",")]):
        path = options.out / name.removeprefix("unify/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else encode_png(content))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
