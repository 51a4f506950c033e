from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, CLIPImageProcessor, SegformerImageProcessor

from services.models import images
from services.models.images import PIXELS_AT_ONCE, area, by_shape, pixel_values
from services.scorers.shared.images import crop, deduplicate


def test_distinct_keeps_first_sight_order() -> None:
    a, b = np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 3), np.uint8)
    flipped = np.zeros((3, 2, 3), np.uint8)  # the same bytes in another shape
    kept, places = deduplicate([b, a, b.copy(), flipped, a[::-1]])
    assert [id(k) for k in kept] == [id(b), id(a), id(flipped)]
    assert places == [0, 1, 0, 2, 1]


def test_by_shape_groups_indices() -> None:
    small, large = np.zeros((2, 3, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    assert by_shape([small, large, small]) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((2, 4, 6, 8), 0.0, (4, 2, 4, 4)),
        ((2, 4, 6, 8), 0.25, (3, 1, 6, 6)),
        ((0, 0, 20, 10), 0.5, (0, 0, 10, 20)),  # nothing beyond the image
        ((2.4, 4.6, 5.6, 8.4), 0.0, (5, 2, 3, 4)),
        ((-5, -5, -2, -2), 0.0, (0, 0, 1, 1)),
        ((25, 15, 30, 20), 0.0, (9, 19, 1, 1)),
    ],
)
def test_crop(box: tuple[float, ...], margin: float, expected: tuple[int, int, int, int]) -> None:
    rows, columns = np.mgrid[0:10, 0:20].astype(np.uint8)
    piece = crop(np.stack([rows, columns, rows], axis=2), box, margin)  # type: ignore[arg-type]
    assert (int(piece[0, 0, 0]), int(piece[0, 0, 1]), *piece.shape[:2]) == expected


class Processor:
    """Remembers what it was given and stacks it."""

    def __call__(self, images: list[np.ndarray], **options: str) -> dict[str, torch.Tensor]:
        self.images, self.options = images, options
        return {"pixel_values": torch.zeros(len(images), 3, 2, 2)}


def test_only_read_only_images_are_copied_for_torch() -> None:
    mine, off_the_wire = np.zeros((3, 1, 3), np.uint8), np.frombuffer(bytes(9), np.uint8).reshape(3, 1, 3)
    processor, model = Processor(), torch.nn.Linear(1, 1).half()
    model.device, model.dtype = torch.device("cpu"), torch.float16  # as transformers' modules have
    batch = pixel_values(processor, [mine, off_the_wire], model)
    assert batch.dtype == torch.float16
    assert processor.images[0] is mine
    assert all(image.flags.writeable for image in processor.images)
    assert processor.options["input_data_format"] == "channels_last"  # so that 3 rows are not taken for channels


def test_area() -> None:
    assert area((1.0, 2.0, 4.0, 4.0)) == 6.0


def test_large_images_are_prepared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And give the values that the library makes of all together."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(48, 80), (64, 64), (48, 80), (30, 20)]]
    model = SimpleNamespace(device="cpu", dtype=torch.float32)
    for processor in (
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        SegformerImageProcessor(size={"height": 32, "width": 32}),
    ):
        together = processor(arrays, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        monkeypatch.setattr(images, "PIXELS_AT_ONCE", PIXELS_AT_ONCE)
        assert torch.equal(pixel_values(processor, arrays, model), together)
        monkeypatch.setattr(images, "PIXELS_AT_ONCE", 8000)
        assert [len(part) for part in images._parts(arrays)] == [2, 2]
        assert torch.equal(pixel_values(processor, arrays, model), together)
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 100)
    assert [len(part) for part in images._parts(arrays)] == [1, 1, 1, 1]
