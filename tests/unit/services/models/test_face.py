from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from safetensors.torch import save_file
from skimage import data

from services.models import face
from services.models.types import Detection
from synod.contracts import Pixels
from synod.errors import SettingsError

ImageFactory = Callable[..., list[Any]]


def test_mtcnn_finds_the_largest_face_in_a_batch_of_mixed_sizes(make_images: ImageFactory) -> None:
    portrait = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    both = np.zeros((256, 384, 3), np.uint8)
    both[:, :256] = portrait
    both[:128, 256:] = portrait[::2, ::2]
    blank = np.zeros((10, 300, 3), np.uint8)
    boxes = face.MtcnnFinder("cpu").largest([blank, both, *make_images(1), portrait])
    assert boxes[0] is None
    assert boxes[2] is None
    assert boxes[1] is not None
    assert boxes[3] is not None
    assert boxes[1] == pytest.approx(boxes[3], abs=4)
    assert all(type(corner) is float for corner in boxes[3])


class Fixed:
    class_names = ("face", "cat")

    def __init__(self, *found: tuple[str, float, tuple[float, float, float, float]]) -> None:
        self.found = [Detection.of(name, score, box, np.ones((1, 1), bool)) for name, score, box in found]

    def detect(
        self, images: Sequence[Pixels], classes: Collection[str] | None = None, least: float = 0.0
    ) -> list[list[Detection]]:
        return [[d for d in self.found if classes is None or d.class_name in classes] for _ in images]


def test_a_detector_gives_its_largest_confident_face() -> None:
    fixed = Fixed(
        ("face", 0.9, (0, 0, 2, 2)),
        ("face", 0.31, (0, 0, 3, 3)),
        ("face", 0.3, (0, 0, 9, 9)),
        ("cat", 0.9, (0, 0, 20, 20)),
    )
    assert face.DetectorFinder(fixed, "face", 0.3).largest([np.zeros((1, 1, 3), np.uint8)]) == [(0, 0, 3, 3)]
    assert face.DetectorFinder(Fixed(), "face", 0.3).largest([np.zeros((1, 1, 3), np.uint8)]) == [None]


def test_a_finder_class_that_the_detector_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'nose'.*'cat', 'face'"):
        face.DetectorFinder(Fixed(), "nose", 0.3)


def test_facenet_weights_load_without_pickle_or_classifier(
    tiny_models: Any, tmp_path: Path, make_images: ImageFactory
) -> None:
    embedder = face.embedder(family="facenet", weights=tiny_models.facenet, device="cpu")
    rows = embedder.embed([*make_images(1), *make_images(1, 2, size=(30, 50))])
    assert rows.shape == (2, 512)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    state = torch.load(tiny_models.facenet, weights_only=True)
    assert "logits.weight" in state
    save_file(state, tmp_path / "face.safetensors")
    again = face.embedder(family="facenet", weights=str(tmp_path / "face.safetensors"), device="cpu")
    assert again.embed(make_images(1)) == pytest.approx(rows[:1], abs=1e-5)
    torch.save({k: v for k, v in state.items() if k != "last_linear.weight"}, tmp_path / "half.pt")
    with pytest.raises(SettingsError, match="missing last_linear"):
        face.embedder(family="facenet", weights=str(tmp_path / "half.pt"), device="cpu")


def test_facenet_sees_160_px_scaled_about_127_5(tiny_models: Any, make_images: ImageFactory) -> None:
    (crop,) = make_images(1, 4, size=(160, 160))
    (row,) = face.embedder(family="facenet", weights=tiny_models.facenet, device="cpu").embed([crop])
    model = InceptionResnetV1(pretrained=None).eval()
    model.load_state_dict(torch.load(tiny_models.facenet, weights_only=True), strict=False)
    with torch.no_grad():
        expected = model(fixed_image_standardization(torch.tensor(crop).permute(2, 0, 1)[None].float()))[0].numpy()
    assert row == pytest.approx(expected, abs=1e-6)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a weights file ran code",))


def test_a_weights_file_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(SettingsError, match="not weights that can be read safely"):
        face.embedder(family="facenet", weights=str(tmp_path / "bomb.pt"), device="cpu")


def test_small_embeddings_are_the_pooled_output(tiny_models: Any, make_images: ImageFactory) -> None:
    from transformers import AutoImageProcessor, AutoModel

    crops = [*make_images(1), *make_images(1, 2, size=(9, 30))]
    rows = face.embedder(family="small", model=tiny_models.small_face, device="cpu").embed(crops)
    model = AutoModel.from_pretrained(tiny_models.small_face, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_models.small_face)
    for crop, row in zip(crops, rows, strict=True):
        with torch.no_grad():
            pooled = model(**processor(crop, return_tensors="pt")).pooler_output[0].numpy()
        assert row == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)
