"""Half precision and compilation: every family gives what it gives in float32, in half the memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data
from torch._dynamo.utils import counters

from services.cluster.warmup import warm_up
from services.models import blip2, dinov2, face, mask2former, open_clip, semantic, text_encoder, transformers_clip, vlm
from services.models.cache import Device
from services.models.module_stats import record_modules
from services.models.types import within
from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec
from synod.contracts import Outcome, Score, ScoreItem
from synod.errors import SettingsError

Array = NDArray[Any]
TEXTS = ("a red cat", "two black birds above a hat")


def photos() -> list[Any]:
    return [np.ascontiguousarray(image[:128, :128]) for image in (data.astronaut(), data.coffee(), data.rocket())]


def first(pair: tuple[int, Any]) -> int:
    return pair[0]


def masks(found: Any) -> Array:
    """[N 3]: the detections' number, the sum of their scores, and the share of the image under their masks."""
    return np.array([[len(f), sum(d.score for d in f), covered(f)] for f in found], np.float32)


def covered(found: Any) -> float:
    """The share of a 128 x 128 image under the detections' masks."""
    whole = np.zeros((128, 128), bool)
    for d in found:
        within(whole, d.box)[...] |= d.mask
    return float(whole.mean())


# family -> (what loads it, its output on fixed inputs)
FAMILIES: dict[str, tuple[Callable[[Any, Device], Any], Callable[[Any], Array]]] = {
    "dinov2": (lambda t, d: dinov2.load(t.dinov2, d), lambda m: m.embed(photos())),
    "blip2_images": (lambda t, d: blip2.load(t.blip2, d), lambda m: m.image_features(photos())),
    "blip2_texts": (lambda t, d: blip2.load(t.blip2, d), lambda m: m.text_features(TEXTS)),
    "open_clip_images": (lambda t, d: open_clip.load(t.open_clip, None, d), lambda m: m.image_features(photos())),
    "open_clip_texts": (lambda t, d: open_clip.load(t.open_clip, None, d), lambda m: m.text_features(TEXTS)),
    "clip_images": (lambda t, d: transformers_clip.load(t.clip, d), lambda m: m.image_features(photos())),
    "clip_texts": (lambda t, d: transformers_clip.load(t.clip, d), lambda m: m.text_features(TEXTS)),
    "text": (lambda t, d: text_encoder.load(t.text, d), lambda m: m.encode(TEXTS, "mean")),
    "small_face": (
        lambda t, d: face.embedder(family="small", device=d, model=t.small_face),
        lambda m: m.embed(photos()),
    ),
    "facenet": (lambda t, d: face.embedder(family="facenet", device=d, weights=t.facenet), lambda m: m.embed(photos())),
    "semantic": (
        lambda t, d: semantic.load(t.semantic, d, 4)._segmenter,
        lambda m: np.stack([logits.softmax(-1).numpy() for _, logits in sorted(m.logits(photos()), key=first)]),
    ),
    "mask2former": (lambda t, d: mask2former.load(t.mask2former, d), lambda m: masks(m.detect(photos()[:1]))),
}


@pytest.fixture(autouse=True)
def _small_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 96)
    monkeypatch.setattr(mask2former, "LONG_SIDE", 128)


def held_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model._model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.04), ("float16", 0.006)])
def test_half_precision_is_close_and_leaves_as_float32(
    tiny_models: Any, family: str, dtype: Any, tolerance: float
) -> None:
    load, run = FAMILIES[family]
    whole, half = load(tiny_models, Device("cpu")), load(tiny_models, Device("cpu", dtype))
    assert held_bytes(half) * 2 == held_bytes(whole)
    assert {p.dtype for p in half._model.parameters()} == {getattr(torch, dtype)}
    expected, found = run(whole), run(half)
    assert found.dtype == np.float32
    worst = float(np.abs(found - expected).max())
    assert 0 < worst <= tolerance


def test_rotary_frequencies_stay_float32(tiny_models: Any) -> None:
    """bfloat16 rounds a frequency by up to 0.2 %, which at position 1000 is a radian and more."""
    model = vlm.load(tiny_models.qwen, Device("cpu", "bfloat16"))._model
    kept = {name: buffer.dtype for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    assert len(kept) >= 2
    assert set(kept.values()) == {torch.float32}


@pytest.mark.slow
def test_the_settings_reach_the_models(tiny_models: Any) -> None:
    """Every kind of scorer, by its settings alone; the face finder MTCNN is the one that stays as it is."""
    segmenter = {"family": "semantic", "model": tiny_models.semantic}
    finder = {"family": "detector", "detector": segmenter}
    clip, open_ = (
        {"family": f, "model": m} for f, m in (("transformers", tiny_models.clip), ("open_clip", tiny_models.open_clip))
    )
    trees: list[dict[str, Any]] = [
        {"kind": "tier", "model": tiny_models.text},
        {"kind": "ber", "model": tiny_models.blip2},
        {"kind": "der", "model": tiny_models.dinov2},
        {"kind": "fer", "finder": finder, "embedder": {"family": "facenet", "weights": tiny_models.facenet}},
        {"kind": "geneval", "detector": segmenter, "color_model": open_},
        *({"kind": kind, "model": clip} for kind in ("clip_i", "clip_t", "clip_direction")),
        {"kind": "clip_t", "model": open_},
        {"kind": "pickscore", "model": tiny_models.clip},
        {"kind": "likelihood", "model": tiny_models.qwen},
        {"kind": "hps", "architecture": tiny_models.open_clip, "weights": tiny_models.hps},
    ]
    for tree in trees:
        settings = registry.SETTINGS.validate_python({**tree, "serving": {"device": "cpu", "dtype": "bfloat16"}})
        with record_modules() as modules:
            registry.build("one", settings)
        assert modules, tree
        assert {p.dtype for module in modules for p in module.parameters()} == {torch.bfloat16}, tree


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler: g++")
def test_compiled_values_are_equal_for_any_batch_size(tiny_models: Any, make_images: Any) -> None:
    def scorer(compiled: bool) -> Scorer:
        tree = {"kind": "der", "model": tiny_models.dinov2, "serving": {"device": "cpu", "compile": compiled}}
        return registry.build("der", registry.SETTINGS.validate_python(tree))

    items = [ScoreItem(image=image, references=tuple(make_images(1, 9))) for image in make_images(7)]
    expected = [one.value for one in scorer(False).score(items) if isinstance(one, Score)]
    compiled = scorer(True)
    before = counters["stats"]["unique_graphs"]
    warm_up(compiled, 8)
    graphs = counters["stats"]["unique_graphs"] - before
    assert 1 <= graphs <= 2, "one for a single image, one for any other batch"
    for size in (7, 1, 3, 5, 2, 4):
        found = [one.value for one in compiled.score(items[:size]) if isinstance(one, Score)]
        assert found == pytest.approx(expected[:size], abs=1e-5)
    assert counters["stats"]["unique_graphs"] - before == graphs


class Uncompiled:
    spec = ScorerSpec("sick", ("image",), 0.0, 1.0, "", "")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        raise RuntimeError("No C++ compiler")


def test_compile_failure_is_reported_before_serving() -> None:
    with pytest.raises(SettingsError, match=r"(?s)scorer 'sick' .*No C.. compiler.*compile = false"):
        warm_up(Uncompiled(), 4)


def test_warm_up_runs_batches_of_one_two_and_the_maximum() -> None:
    seen: list[list[ScoreItem]] = []

    class Listening(Uncompiled):
        def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
            seen.append(list(items))
            return [Score(0.0)] * len(items)

    warm_up(Listening(), 8)
    assert [len(items) for items in seen] == [1, 2, 8]
    for items in seen:
        assert len({item.pixels().tobytes() for item in items}) == len({item.prompt for item in items}) == len(items)
