"""The instruments of the policy's figures: right on real images, and worth nothing for a policy that does not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedded import world
from embedded.makers import accept
from trainer.policy.show_o.policy import ShowO
from trainer.types import Query

POLICY: Any = object()  # these functions only hand it on


def test_accessory_colors_are_right_on_real_images() -> None:
    """On concepts, that is; on random individuals, with whose accessories the detector was not trained, .7 are."""
    rng = np.random.default_rng(3)
    worn = [
        (world.ACCESSORIES[i % len(world.ACCESSORIES)], tuple(world.COLORS)[i % len(world.COLORS)]) for i in range(40)
    ]
    profiles = [world.CONCEPTS[i % len(world.CONCEPTS)] for i in range(40)]

    def images(accessories: Sequence[tuple[tuple[str, str], ...]]) -> list[np.ndarray]:
        shown = zip(profiles, accessories, strict=True)
        return [world.render(world.concept_scene(profile, rng, worn), rng).image for profile, worn in shown]

    found = accept.accessory_colors(images([(pair,) for pair in worn]))
    assert np.mean([color == pair[1] for color, pair in zip(found, worn, strict=True)]) >= 0.8
    assert sum(color is not None for color in accept.accessory_colors(images([()] * 40))) <= 2


def test_yes_to_everything_is_half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "answered", lambda policy, queries: ["yes."] * len(queries))
    found = accept.recognised(POLICY, 120)
    assert found["yes or no"].value == 0.5
    assert (found["yes"].value, found["no, same class"].value, found["no, another concept"].value) == (1.0, 0.0, 0.0)


def test_an_answer_by_name_is_not_the_images_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(policy: ShowO, queries: Sequence[Query]) -> list[str]:
        known = {q: a for profile in world.CONCEPTS for q, a in world.conversations(profile)}
        return [known.get(query.text, "a dog.") for query in queries]

    monkeypatch.setattr(accept, "answered", by_name)
    found = accept.visual(POLICY, 40)
    assert found["name's answer"].value == 1.0
    assert found["image's answer"].value == found["visual, unseen"].value == 0.0


def test_a_size_that_leaves_questions_unasked_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Their figures would be means of nothing."""
    with pytest.raises(SystemExit):
        accept.main(["--size", "29"])
    assert "4 kinds of images for each of 15 concepts; give at least 30" in capsys.readouterr().err
