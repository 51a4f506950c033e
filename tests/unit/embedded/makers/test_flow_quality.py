"""The measurements of the flow models, on toys: every figure is a share, and the page has them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedded import world
from embedded.makers import codec, flow_quality
from embedded.makers.__main__ import FLOW, LANGUAGE, SANA, SCENES
from embedded.makers.metrics import Metric
from services.models import transformers_clip
from synod.contracts import Pixels


def test_codec_column_is_the_policys_codec(toys: Path) -> None:
    policy = flow_quality.policy_of(toys)
    rng = np.random.default_rng(0)
    image = world.render(world.sample(rng, "counting")[0], rng).image
    z = codec.encode(policy.codec, image[None])
    wanted = (policy.codec.decode(z, return_dict=False)[0][0].detach() / 2 + 0.5).clamp(0, 1) * 255
    coded = flow_quality.codec_of(policy)(image)
    np.testing.assert_allclose(coded, wanted.permute(1, 2, 0).numpy(), atol=0.51)


def test_readers_are_measured(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_quality, "LONGEST", 4)
    found = [*flow_quality.scenes(toys / SCENES, 6), *flow_quality.answers(toys / LANGUAGE, 1)]
    assert len({one.name for one in found}) == 7
    assert all(0 <= one.value <= 1 for one in found)
    assert [one.n for one in found[:3]] == [6] * 3
    start = {name: {"counting": Metric("counting", 0.25, 84, None)} for name in ("SDE", "ODE")}
    text = flow_quality.document([("detector", 9, [0.9, 0.8], 0.9)], start, found, toys)
    assert "| detector | 9 | 90.0 % | 80.0 % | 90 % |" in text
    assert "| counting | 84 | 25.0 ± 4.7 % | 25.0 ± 4.7 % |" in text
    assert all(f"| {name} |" in text for name in (*FLOW, *(one.name for one in found)))
    assert SANA in FLOW


def test_a_perfect_clip_of_scenes_scores_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Features that are the scene's own prompt: an oracle, which finds every caption, edit and pair."""

    class Oracle:
        def __init__(self) -> None:
            self.of: dict[bytes, str] = {}

        def image_features(self, images: list[Pixels]) -> np.ndarray:
            return self.text_features([self.of[image.tobytes()] for image in images])

        def text_features(self, texts: list[str]) -> np.ndarray:
            rows = [np.random.default_rng(list(text.encode())).standard_normal(64) for text in texts]
            return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    oracle, render = Oracle(), world.render
    drawn: list[str] = []

    def scene_for(prompt: world.Prompt, rng: np.random.Generator) -> world.Scene:
        drawn.append(prompt.text)
        return world.individual_scene(world.CONCEPTS[0], rng)

    def rendered(scene: world.Scene, rng: np.random.Generator) -> world.Render:
        made = render(scene, rng)
        oracle.of[made.image.tobytes()] = drawn[-1]
        return made

    monkeypatch.setattr(world, "scene_for", scene_for)
    monkeypatch.setattr(world, "render", rendered)
    monkeypatch.setattr(transformers_clip, "load", lambda *_: oracle)
    assert [one.value for one in flow_quality.scenes(tmp_path, 20)] == [1.0, 1.0, 1.0]
