"""The batch contract: every scorer and model family, on tiny models, with drawn images and photographs.

Length and order, finiteness and range, batch size, permutation, repetition, precision, failures that stay with their
item.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from services.models import face, hpsv3, mask2former, semantic
from services.models.settings import ClipModel
from services.scorers import registry
from services.scorers.base import Scorer, score_batch
from synod.contracts import (
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    Outcome,
    Pixels,
    Reasoning,
    Score,
    ScoreFailure,
    ScoreItem,
)
from tests.building import build, example
from tests.judges import judging

OF_IMAGES = (
    *("ber", "ber_itm", "der", "fer", "fer_mtcnn", "geneval", "geneval_mask2former"),
    *("jpeg", "jpeg_large", "psnr", "clip_i", "clip_i_open", "clip_t", "clip_t_open", "clip_direction"),
    *("pickscore", "hps", "aesthetic", "image_reward", "hpsv3", "ocr", "likelihood", "likelihood_llava"),
    *("judge", "dense_validity", "quality", "unified_reward", "unified_reward_axes"),
    *("geneval2", "geneval2_hard"),
)
OF_WORDS = ("tier", "tier_paper", "bleu", "recognition", "format", "reflection", "judge_text")
# Further scorers of images, on the tiny open_clip (whose tokenizer knows every word); other models need settings below.
OTHERS = sorted(set(registry.MODULES) - {*OF_WORDS, *OF_IMAGES, "custom"})
CASES = [
    *((name, "drawn") for name in (*OF_WORDS, *OF_IMAGES, *OTHERS)),
    *((name, "photographs") for name in (*OF_IMAGES, *OTHERS)),
]
# Whose values follow a model's numbers, and do not jump where a detector's box moves by a pixel or a class wins. By how
# much bfloat16 may move them, of what lies between the photographs' highest and lowest value.
SMOOTH = {
    **dict.fromkeys(("tier", "der", "fer_mtcnn", "clip_i", "clip_i_open", "clip_t", "clip_t_open"), 0.05),
    **dict.fromkeys(("pickscore", "hps", "aesthetic", "image_reward", "likelihood", "likelihood_llava"), 0.05),
    "hpsv3": 0.05,
    **dict.fromkeys(("ber", "ber_itm"), 0.25),  # under these weights all photographs lie within 0.04 and 0.006
    "clip_direction": 0.25,  # a difference of two near features
}
FAILURES = {  # of items that a scorer cannot measure: no face, an edit that changes nothing, another size
    **dict.fromkeys(("fer", "fer_mtcnn"), "no_reference_face"),
    **dict.fromkeys(("clip_direction", "psnr"), "invalid_item"),
}
JUDGED = ("judge", "dense_validity", "quality", "unified_reward")
YES_NO = ("recognition", "reflection")  # scorers of replies to yes/no questions
ImageFactory = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with judging() as server:
        yield server.url


@pytest.fixture(scope="module")
def trees(tiny_models: Any, judge_url: str) -> dict[str, dict[str, Any]]:
    """Each scorer's settings, as a TOML has them."""
    detector = {"family": "semantic", "model": tiny_models.semantic}
    finder = {"family": "detector", "detector": detector}
    clip = {"family": "transformers", "model": tiny_models.clip}
    open_clip = {"family": "open_clip", "model": tiny_models.open_clip}
    trees: dict[str, dict[str, Any]] = {
        "tier": {"kind": "tier", "model": tiny_models.text},
        "tier_paper": {"kind": "tier", "model": tiny_models.text, "mode": "paper_clipped", "pooling": "cls"},
        "ber": {"kind": "ber", "model": tiny_models.blip2},
        "ber_itm": {"kind": "ber", "model": tiny_models.blip2, "head": "itm"},
        "der": {"kind": "der", "model": tiny_models.dinov2},
        "fer": {"kind": "fer", "finder": finder, "embedder": {"family": "small", "model": tiny_models.small_face}},
        "fer_mtcnn": {
            "kind": "fer",
            "finder": {"family": "mtcnn"},
            "embedder": {"family": "facenet", "weights": tiny_models.facenet},
        },
        "geneval": {"kind": "geneval", "detector": detector, "color_model": open_clip},
        "geneval_mask2former": {
            "kind": "geneval",
            "detector": {"family": "mask2former", "model": tiny_models.mask2former},
            "color_model": open_clip,
            "rule_set": "official",
        },
        "clip_i": {"kind": "clip_i", "model": clip},
        "clip_i_open": {"kind": "clip_i", "model": open_clip},
        "clip_t": {"kind": "clip_t", "model": clip},
        "clip_t_open": {"kind": "clip_t", "model": open_clip},
        "clip_direction": {"kind": "clip_direction", "model": clip},
        "pickscore": {"kind": "pickscore", "model": tiny_models.clip},
        "hps": {"kind": "hps", "architecture": tiny_models.open_clip, "weights": tiny_models.hps},
        "aesthetic": {"kind": "aesthetic", "model": clip, "weights": tiny_models.aesthetic},
        "image_reward": {
            "kind": "image_reward",
            "model": tiny_models.image_reward,
            "tokenizer": tiny_models.text,
        },
        "hpsv3": {"kind": "hpsv3", "model": tiny_models.hpsv3, "base": tiny_models.qwen2},
        "ocr": {"kind": "ocr"},
        "psnr": {"kind": "psnr"},
        "jpeg": {"kind": "jpeg", "direction": "compressibility"},
        "jpeg_large": {"kind": "jpeg", "direction": "incompressibility"},
        "likelihood": {"kind": "likelihood", "model": tiny_models.qwen},
        "likelihood_llava": {"kind": "likelihood", "model": tiny_models.llava},
    }
    trees |= {kind: {"kind": kind} for kind in ("bleu", "recognition", "format", "reflection")}
    endpoint = {"url": judge_url, "model": "m"}
    trees |= {kind: {"kind": kind, **endpoint} for kind in (*JUDGED, "judge_text")}
    trees["geneval2"] = {"kind": "geneval2", **endpoint}
    trees["geneval2_hard"] = {"kind": "geneval2", "method": "tifa", **endpoint}
    trees["unified_reward_axes"] = {"kind": "unified_reward", "form": "axes", **endpoint}
    for kind in OTHERS:
        models = [name for name, field in registry.CLASSES[kind].model_fields.items() if field.annotation is ClipModel]
        trees[kind] = {**example(kind), **dict.fromkeys(models, open_clip)}
    assert set(trees) == {*OF_WORDS, *OF_IMAGES, *OTHERS}
    return trees


@pytest.fixture(scope="module")
def scorers(trees: dict[str, dict[str, Any]]) -> Iterator[dict[str, Scorer]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small lose by a second one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask2former, "SHORT_SIDE", 128)  # the law does not depend on the size, the minutes do
        patch.setattr(mask2former, "LONG_SIDE", 192)
        patch.setattr(hpsv3, "IMAGE_TOKENS", 16)
        patch.setattr(semantic, "MIN_AREA", 4)
        patch.setattr(face, "FACE_THRESHOLD", 0.2)
        yield {name: build(name, **tree) for name, tree in trees.items()}
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A scorer's name, and what its images are."""
    name, content = request.param
    return name, content


@pytest.fixture
def scorer(case: tuple[str, str], scorers: dict[str, Scorer]) -> Scorer:
    return scorers[case[0]]


@pytest.fixture
def items(scorer: Scorer, complete: list[ScoreItem]) -> list[ScoreItem]:
    """The eight items, with other replies or denser prompts where a scorer asks for other questions."""
    if scorer.spec.name == "dense_validity":
        return [replace(item, prompt=f"{item.prompt}, {'surely ' * (i % 2)}a dog") for i, item in enumerate(complete)]
    if scorer.spec.name.startswith("geneval2"):
        asked = (("Is the cat red?", "Yes"), ("How many cats are in the image?", "two"), ("Is it surely a cat?", "Yes"))
        lists = [GenEvalMetadata("geneval2", (), (), asked[: 1 + i % 3]) for i in range(len(complete))]
        return [replace(item, geneval=one) for item, one in zip(complete, lists, strict=True)]
    if scorer.spec.name == "judge_text":
        said = ("a dog", "", "a cat", "it is a dog", "a dog", " ", "dog", "A DOG")
        return [
            replace(item, reasoning=Reasoning(one, ("a dog",), (1.0,)))
            for item, one in zip(complete, said, strict=True)
        ]
    if scorer.spec.name not in ("bleu", "format", *YES_NO):
        return complete
    replies = ("Yes.", "", "<answer>no</answer>", "I do not know", "<answer>", " <answer> Yes </answer>", "dog", "NO")
    segments = ("Yes", "No") if scorer.spec.name in YES_NO else ("a dog", "No, it is a red hat", "a cat")
    truths = [(float(i % 2), 1.0 - i % 2, 0.0)[: len(segments)] for i in range(len(replies))]
    reasonings = [Reasoning(reply, segments, truth) for reply, truth in zip(replies, truths, strict=True)]
    return [replace(item, reasoning=reasoning) for item, reasoning in zip(complete, reasonings, strict=True)]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], list[Outcome]]:
    """The outcomes of `straight`, by case."""
    return {}


@pytest.fixture
def straight(
    case: tuple[str, str], scorer: Scorer, items: list[ScoreItem], found: dict[tuple[str, str], list[Outcome]]
) -> list[Outcome]:
    """The outcomes of the items in one batch, in order; scored once for all tests of a case."""
    if case not in found:
        found[case] = score_batch(scorer, items)
    return found[case]


@pytest.fixture
def complete(case: tuple[str, str], make_images: ImageFactory, photographs: dict[str, Pixels]) -> list[ScoreItem]:
    """Eight complete items: sizes mixed, references shared and own, faces and none, texts long, short and empty.

    ImageFactory are read-only, as they are when they come off the wire.
    """
    shown = drawn(make_images) if case[1] == "drawn" else photographed(photographs)
    texts = ("a red cat", "", "a person wearing a blue hat " * 4, "dog", "two black birds", "cat", "hat", "a scarf")
    items = []
    for i, ((image, references), text) in enumerate(zip(shown, texts, strict=True)):
        for one in (image, *references):
            one.setflags(write=False)
        clauses = (
            GenEvalClause("cat", 1 + i % 3, ("red", None, "blue")[i % 3] if i > 2 else None),
            GenEvalClause("person", 1, None, ("left of", 0) if i % 4 == 3 else None),
        )[: 1 + i % 2]
        truth = (0.0, 0.0, 0.0) if i == 3 else (1.0, 0.0, float(i % 2))
        items.append(
            ScoreItem(
                image=image,
                prompt=f"a photo of <bo> with {text or 'grass'} and 'cat'",
                references=references,
                reasoning=Reasoning(text, ("a red hat", "dog sits", "a white scarf"), truth),
                geneval=GenEvalMetadata("counting" if i == 4 else "colors", clauses, clauses[1:] if i == 5 else ()),
                concept=Concept("person", "person", "<bo>"),
                source_prompt=f"a black dog and {'a hat' if i % 2 else 'two birds'}",
            )
        )
    return items


Shown = list[tuple[Pixels, tuple[Pixels, ...]]]  # eight images, each with its references


def drawn(make_images: ImageFactory) -> Shown:
    """Five drawn, one of 3 x 3, and three portraits; the references are portraits."""
    portrait = np.ascontiguousarray(data.astronaut()[:224, 112:336])
    faces = [portrait, np.ascontiguousarray(portrait[:, ::-1]), (portrait * 0.6).astype(np.uint8)]
    faces[1] = lettered(faces[1], "cat")
    images = [*make_images(3, 1), *make_images(1, 2, size=(48, 80)), make_images(1, 3, size=(3, 3))[0], *faces]
    return [(image, (faces[0],) if i % 2 else (faces[1], faces[2])) for i, image in enumerate(images)]


def photographed(photographs: dict[str, Pixels]) -> Shown:
    """Photographs, of which one carries letters; the references are the astronaut, or the image softened and turned.
    Of all of these the astronaut alone shows a face."""
    astronaut = photographs["astronaut"]
    images = [astronaut, *(photographs[name] for name in photographs if name != "astronaut")]
    images[2] = lettered(images[2], "cat")
    softened = [np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))) for image in images]
    return [
        (image, (astronaut,) if i % 2 else (softened[i], np.ascontiguousarray(softened[i][:, ::-1])))
        for i, image in enumerate(images)
    ]


def lettered(image: Pixels, text: str) -> Pixels:
    """The canvas with a line of text in its lower left corner."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, canvas.height - 48, 100, canvas.height), "white")
    draw.text((12, canvas.height - 46), text, "black", ImageFont.load_default(size=36))
    return np.array(canvas)


def same(a: Outcome, b: Outcome, tolerance: float = 1e-4) -> bool:
    if isinstance(a, Score) and isinstance(b, Score):
        return abs(a.value - b.value) <= tolerance
    return a == b


def values(outcomes: Sequence[Outcome]) -> list[float]:
    return [o.value for o in outcomes if isinstance(o, Score)]


def test_every_item_gets_one_finite_score_in_range(
    scorer: Scorer, items: list[ScoreItem], straight: list[Outcome]
) -> None:
    assert len(straight) == len(items)
    spec = scorer.spec
    for outcome in straight:
        if isinstance(outcome, ScoreFailure):
            assert outcome.code == FAILURES[spec.name]
            continue
        assert math.isfinite(outcome.value)
        assert spec.low <= outcome.value <= spec.high
        json.dumps(outcome.detail, allow_nan=False)
    assert len({round(value, 6) for value in values(straight)}) > 1, "the items must differ in score"


def test_batch_of_one_equals_batch_of_thirty_two(scorer: Scorer, items: list[ScoreItem]) -> None:
    turned = [
        replace(item, image=np.ascontiguousarray(np.rot90(item.pixels(), k))) for k in (1, 2, 3) for item in items
    ]
    together = score_batch(scorer, [*items, *turned])
    assert len(together) == 32
    for item, outcome in zip(items, together, strict=False):
        assert same(outcome, score_batch(scorer, [item])[0])


def test_outcomes_follow_their_items_through_a_permutation(
    scorer: Scorer, items: list[ScoreItem], straight: list[Outcome]
) -> None:
    order = np.random.default_rng(7).permutation(len(items)).tolist()
    permuted = score_batch(scorer, [items[i] for i in order])
    assert all(same(straight[i], permuted[place]) for place, i in enumerate(order))


def test_the_same_batch_gives_the_same_bits(scorer: Scorer, items: list[ScoreItem], straight: list[Outcome]) -> None:
    assert score_batch(scorer, items) == straight


@pytest.mark.parametrize("case", [(name, "photographs") for name in SMOOTH], ids=lambda case: case[0])
def test_bfloat16_changes_little_of_the_spread_between_items(
    case: tuple[str, str], items: list[ScoreItem], straight: list[Outcome], trees: dict[str, dict[str, Any]]
) -> None:
    half = build(case[0], **{**trees[case[0]], "serving": {"device": "cpu", "dtype": "bfloat16"}})
    outcomes = zip(straight, score_batch(half, items), strict=True)
    pairs = [(a.value, b.value) for a, b in outcomes if isinstance(a, Score) and isinstance(b, Score)]
    whole = [a for a, _ in pairs]
    assert 0 < max(abs(a - b) for a, b in pairs) <= SMOOTH[case[0]] * (max(whole) - min(whole))


def test_an_item_that_lacks_a_need_fails_alone(scorer: Scorer, items: list[ScoreItem], straight: list[Outcome]) -> None:
    empty: dict[str, Any] = {"image": None, "prompt": " ", "references": (), "reasoning": None, "geneval": None}
    empty["source_prompt"] = " "
    for need in scorer.spec.needs:
        outcomes = score_batch(scorer, [items[0], replace(items[1], **{need: empty[need]}), items[2]])
        assert isinstance(outcomes[1], ScoreFailure)
        assert outcomes[1].code == "missing_input"
        assert need in outcomes[1].message
        assert same(outcomes[0], straight[0])
        assert same(outcomes[2], straight[2])


def test_a_poison_item_fails_alone(scorer: Scorer, items: list[ScoreItem], straight: list[Outcome]) -> None:
    """An image (or text) of a type that the models choke on, in the middle of a good batch."""
    assert items[4].reasoning is not None
    poison: dict[str, Any] = {"reasoning": replace(items[4].reasoning, text=3)}  # type: ignore[arg-type]
    if "image" in scorer.spec.needs:
        poison = {"image": np.full((64, 64), "x")}
    outcomes = score_batch(scorer, [*items[:4], replace(items[4], **poison), *items[5:]])
    assert isinstance(outcomes[4], ScoreFailure)
    assert outcomes[4].code == "scorer_failed"
    assert all(same(a, b) for i, (a, b) in enumerate(zip(outcomes, straight, strict=True)) if i != 4)


def test_an_empty_batch_is_an_empty_answer(scorer: Scorer) -> None:
    assert score_batch(scorer, []) == []
