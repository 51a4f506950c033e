"""What each scorer does around its model, with models of known answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from services.models.types import Detection
from services.scorers.base import score_batch
from services.scorers.ber import Ber, BerSettings
from services.scorers.clip_direction import ClipDirection, ClipDirectionSettings
from services.scorers.der import Der, DerSettings
from services.scorers.fer import Fer, FerSettings
from services.scorers.geneval import GenEvalSettings
from services.scorers.geneval.colour import ColorClassifier
from services.scorers.geneval.scorer import GenEval
from services.scorers.shared.image_text import clipped, to_plain_text
from synod.contracts import Concept, GenEvalClause, GenEvalMetadata, Pixels, Score, ScoreFailure, ScoreItem
from tests.outcomes import values


def flat(level: int, size: tuple[int, int] = (8, 8)) -> Pixels:
    return np.full((*size, 3), level, np.uint8)


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a photo of <bo>", Concept("animal", "dog", "<bo>"), "a photo of dog"),
        ("<bo>'s hat, <bo> sits", Concept("animal", "dog", "<bo>"), "dog's hat, dog sits"),
        ("<bo><x1><x2> sits", Concept("animal", "dog", "<bo>"), "dog sits"),
        ("<bo> sits", Concept("animal", None, "<bo>"), "sits"),
        ("<bo> sits", None, "sits"),
        ("sks asks sks-cat", Concept("person", "man", "sks"), "man asks man-cat"),
        ("a < b and c > d", None, "a < b and c > d"),
        ("a cat", Concept("person", "man", "<bo>"), "a cat"),
        ("<bo> x", Concept("person", r"\1", "<bo>"), r"\1 x"),
        ("<bo> <x>", None, ""),
    ],
)
def test_prompts_become_words_that_text_towers_know(prompt: str, concept: Concept | None, expected: str) -> None:
    assert to_plain_text(prompt, concept) == expected


class FakeImageText:
    def __init__(self) -> None:
        self.read: list[str] = []

    def image_features(self, images: Sequence[Pixels]) -> np.ndarray:
        return np.array([[[1, 0], [0, 1]]] * len(images), np.float32)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        return np.array([[0.6, 0.8]] * len(texts), np.float32)

    def match_probabilities(self, images: Sequence[Pixels], texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text) / 100 for text in texts], np.float32)


def test_a_prompt_without_words_fails_and_equal_ones_run_once() -> None:
    model = FakeImageText()
    items = [ScoreItem(image=flat(1), prompt=p) for p in ("a cat", "<bo>", "a cat", "a dog")]
    outcomes = Ber("ber", model, BerSettings(kind="ber", model="a/b")).score(items)
    assert values(outcomes) == [pytest.approx(0.8), "invalid_item", pytest.approx(0.8), pytest.approx(0.8)]
    assert isinstance(outcomes[1], ScoreFailure)
    assert "'<bo>'" in outcomes[1].message
    assert isinstance(outcomes[0], Score)
    assert outcomes[0].detail["query"] == 1
    assert sorted(model.read) == ["a cat", "a dog"]


def test_the_matching_head_reads_pairs() -> None:
    items = [ScoreItem(image=flat(1), prompt=p) for p in ("a cat", "<bo>", "a large dog")]
    scorer = Ber("ber", FakeImageText(), BerSettings(kind="ber", model="a/b", head="itm"))
    first, none, second = scorer.score(items)
    assert first == Score(pytest.approx(0.05), {"head": "itm", "text": "a cat"})
    assert values((none, second)) == ["invalid_item", pytest.approx(0.11)]
    assert (scorer.spec.low, scorer.spec.high) == (0.0, 1.0)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_not_clipped(reward: float) -> None:
    assert clipped(reward, 0.0, 10.0, {}).value == pytest.approx(reward, nan_ok=True)
    assert [clipped(one, 0.0, 10.0, {}).value for one in (-1.0, 4.0, 11.0)] == [0.0, 4.0, 10.0]


class Directed:
    """A CLIP whose features differ by grey level and by length of text; those of `broken` are NaN."""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def image_features(self, images: Iterable[Pixels]) -> np.ndarray:
        return self.rows("image", [float(image.flat[0]) for image in images])

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        return self.rows("text", [float(len(text)) for text in texts])

    def rows(self, what: str, firsts: Sequence[float]) -> np.ndarray:
        return np.array([[math.nan if what == self.broken else first, 1.0] for first in firsts], np.float32)


@pytest.mark.parametrize(("broken", "expected"), [("", -1.0), ("image", "non_finite"), ("text", "non_finite")])
def test_nan_features_are_not_the_callers_fault(broken: str, expected: float | str) -> None:
    model = {"family": "transformers", "model": "a/b"}
    settings = ClipDirectionSettings.model_validate({"kind": "clip_direction", "model": model})
    item = ScoreItem(image=flat(1), prompt="two dogs", references=(flat(2),), source_prompt="a cat")
    (outcome,) = score_batch(ClipDirection("edit", Directed(broken), settings), [item])
    assert values([outcome]) == [expected]


class ByLevel:
    """Embeds a flat image of grey level a (degrees) as the unit vector at that angle; counts what it embeds."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, images: Sequence[Pixels]) -> np.ndarray:
        self.batches.append(len(images))
        angles = np.radians([float(image.flat[0]) for image in images])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_der_embeds_each_distinct_image_once() -> None:
    model = ByLevel()
    scorer = Der("der", model, DerSettings(kind="der", model="a/b"))
    items = [ScoreItem(image=flat(60), references=(flat(0), flat(60, (4, 4)))) for _ in range(3)]
    items.append(ScoreItem(image=flat(180), references=(flat(0),)))
    assert values(scorer.score(items)) == pytest.approx([(0.5 + 1.0) / 2] * 3 + [-1.0])
    assert model.batches == [4]  # levels 60, 0, 180, and the 4 x 4 image


class CornerFace:
    """The face is the top left quarter; images of level 0 have none."""

    def largest(self, images: Sequence[Pixels]) -> list[Any]:
        return [(0.0, 0.0, i.shape[1] / 2, i.shape[0] / 2) if i.any() else None for i in images]


def test_fer_embeds_each_distinct_face_once() -> None:
    model = ByLevel()
    settings = FerSettings.model_validate(
        {"kind": "fer", "finder": {"family": "mtcnn"}, "embedder": {"family": "small", "model": "a/b"}}
    )
    scorer = Fer("fer", CornerFace(), model, settings)
    items = [ScoreItem(image=flat(60 + i), references=(flat(120), flat(90))) for i in range(3)]
    outcomes = scorer.score([*items, ScoreItem(image=flat(0), references=(flat(120),))])
    cosines = np.cos(np.radians([[60, 30], [59, 29], [58, 28]]))  # to 120 and to 90 degrees
    assert values(outcomes) == pytest.approx([*cosines.mean(axis=1), 0.0], abs=1e-6)
    assert isinstance(outcomes[0], Score)
    assert outcomes[0].detail["box"] == [0.0, 0.0, 4.0, 4.0]
    assert model.batches == [5]


class ByGrey:
    """Embeds a flat image as its grey level, in one dimension: the distance of two is the difference of levels."""

    def embed(self, images: Sequence[Pixels]) -> np.ndarray:
        return np.array([[float(image.flat[0])] for image in images], np.float32) / 100


def test_fer_by_distance_is_at_least_minus_one() -> None:
    tree = {"kind": "fer", "finder": {"family": "mtcnn"}, "embedder": {"family": "dlib"}}
    scorer = Fer("fer", CornerFace(), ByGrey(), FerSettings.model_validate(tree))
    item = ScoreItem(image=flat(10), references=(flat(60), flat(130), flat(250)))  # at distances 0.5, 1.2 and 2.4
    (outcome,) = scorer.score([item])
    assert isinstance(outcome, Score)
    assert outcome.detail["distances"] == pytest.approx([0.5, 1.2, 2.4])
    assert outcome.value == pytest.approx((0.5 - 0.2 - 1.0) / 3)


class Drawn:
    """'Detects' one object per grey level above 0: level 200 is a cat, 100 a dog."""

    class_names = ("cat", "dog")

    def detect(self, images: Sequence[Pixels], least: float = 0.0) -> list[list[Detection]]:
        return [self._one(image[..., 0]) for image in images]

    def _one(self, level: np.ndarray) -> list[Detection]:
        found = []
        for name, value in (("cat", 200), ("dog", 100)):
            for x in range(0, level.shape[1], 10):
                mask = np.zeros(level.shape, bool)
                mask[:, x : x + 10] = level[:, x : x + 10] == value
                if mask.any():
                    found.append(
                        Detection.of(name, 0.95, (float(x), 0.0, x + 10.0, float(len(level))), mask[:, x : x + 10])
                    )
        return found


class Colors(ColorClassifier):
    """Everything of a class is red; remembers each call, and what it saw in the last."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.crops: list[Pixels] = []

    def classify(self, crops: Iterable[Pixels], class_names: Sequence[str]) -> list[str]:
        self.calls.append(list(class_names))
        self.crops = list(crops)
        return ["red"] * len(self.crops)


def strip(*levels: int) -> Pixels:
    return np.concatenate([flat(level, (10, 10)) for level in levels], axis=1)


def geneval(rule_set: str, colors: Colors) -> GenEval:
    detector = {"family": "mask2former", "model": "a/b"}
    settings = GenEvalSettings.model_validate(
        {
            "kind": "geneval",
            "detector": detector,
            "color_model": {"family": "open_clip", "model": "a/b"},
            "rule_set": rule_set,
        }
    )
    return GenEval("geneval", Drawn(), colors, settings)


def test_geneval_classifies_all_crops_in_one_call() -> None:
    red_cat = GenEvalMetadata("colors", (GenEvalClause("cat", 1, "red"),))
    blue_dog = GenEvalMetadata("color_attr", (GenEvalClause("cat", 1), GenEvalClause("dog", 1, "blue")))
    colors = Colors()
    items = [
        ScoreItem(image=strip(200, 0, 100), geneval=red_cat),
        ScoreItem(image=strip(200, 0, 200), geneval=red_cat),
        ScoreItem(image=strip(200, 0, 100), geneval=blue_dog),
    ]
    first, second, third = geneval("official", colors).score(items)
    assert colors.calls == [["cat", "cat", "dog"]]
    assert [(crop.shape, set(crop.flat)) for crop in colors.crops] == [((10, 10, 3), {n}) for n in (200, 200, 100)]
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert isinstance(third, Score)
    assert (first.detail["official"], first.detail["soft"]) == (1.0, 1.0)
    assert (second.value, second.detail["official"], second.detail["soft"]) == (1.0, 1.0, 0.0)
    assert (second.detail["strict"], second.detail["soft_compat"]) == (0.0, 0.0)
    twice = ["expected exactly 1 cat, found 2"]
    assert second.detail["reasons"] == {"official": [], "strict": twice, "soft": twice, "soft_compat": twice}
    assert (third.detail["official"], third.detail["soft"]) == (0.0, pytest.approx(2 / 3))
    assert third.detail["reasons"]["official"] == ["expected 1 blue dog, found 0 (colors: red)"]
    assert third.detail["objects"] == [
        {"class": "cat", "score": 0.95, "box": [0.0, 0.0, 10.0, 10.0], "color": None},
        {"class": "dog", "score": 0.95, "box": [20.0, 0.0, 30.0, 10.0], "color": "red"},
    ]
    assert values(geneval("soft", Colors()).score(items)) == pytest.approx([1.0, 0.0, 2 / 3])
    assert values(geneval("strict", Colors()).score(items)) == [1.0, 0.0, 0.0]


def test_a_range_follows_the_rule_set() -> None:
    ranges = {name: geneval(name, Colors()).spec for name in ("official", "strict", "soft", "soft_compat")}
    assert {name: (s.low, s.high) for name, s in ranges.items()} == {
        "official": (0.0, 1.0),
        "strict": (0.0, 1.0),
        "soft": (0.0, 1.0),
        "soft_compat": (-14.0, 1.0),
    }


def test_metadata_about_an_unknown_class_fails_its_item_alone() -> None:
    unicorn = GenEvalMetadata("single_object", (GenEvalClause("unicorn", 1),))
    cat = GenEvalMetadata("single_object", (GenEvalClause("cat", 1),))
    image = strip(200)
    bad, good = geneval("soft", Colors()).score([ScoreItem(image=image, geneval=m) for m in (unicorn, cat)])
    assert values((bad, good)) == ["invalid_item", 1.0]
    assert isinstance(bad, ScoreFailure)
    assert "cat, dog" in bad.message
    (alone,) = geneval("soft", Colors()).score([ScoreItem(image=image, geneval=unicorn)])
    assert alone == bad
