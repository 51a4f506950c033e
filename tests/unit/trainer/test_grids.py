"""A grid gives back every image and caption that went in, and is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from synod.errors import SettingsError
from synod.images import encode_png
from trainer.grids import load_grid, save_grid, write_whole

sides = st.integers(1, 150)
cells = st.tuples(st.text(st.characters(codec="utf-8"), max_size=40), sides, sides)


@settings(max_examples=25)
@given(rows=st.lists(st.tuples(st.text(max_size=30), st.lists(cells, max_size=3)), max_size=3), seed=st.integers(0, 9))
def test_what_went_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[tuple[str, int, int]]]], seed: int
) -> None:
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("grid") / "a.png"
    drawn = [(t, [(c, rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for c, h, w in found]) for t, found in rows]
    if not any(found for _, found in drawn):
        with pytest.raises(ValueError, match=r"a\.png: a grid without images"):
            save_grid(path, drawn)
        return
    save_grid(path, drawn)
    loaded = load_grid(path)
    assert [(t, [c for c, _ in found]) for t, found in loaded] == [(t, [c for c, _ in found]) for t, found in drawn]
    for (_, before), (_, after) in zip(drawn, loaded, strict=True):
        for (_, a), (_, b) in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)


def test_small_images_are_drawn_larger_by_a_whole_factor(tmp_path: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    drawn = save_grid(tmp_path / "a.png", [("", [("", image)])])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn)
    np.testing.assert_array_equal(drawn[8 : 8 + 128, 8 : 8 + 128], image.repeat(32, 0).repeat(32, 1))


@pytest.mark.parametrize("content", [b"", b"no image", encode_png(np.zeros((4, 4, 3), np.uint8))])
def test_another_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(SettingsError, match=r"b\.png is not a grid"):
        load_grid(tmp_path / "b.png")


def test_a_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "f", b"one")

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "f", b"two")
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"one")]
