"""`python -m services faces`: the vectors that start a person's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services import __main__ as services
from synod.images import encode_png

TOML = """[scorers.fer]
kind = "fer"
finder = { family = "mtcnn" }
embedder = { family = "small", model = "a/b" }
"""


class Fer:
    """Finds a face in every image that is not black; its vector is the image's mean."""

    def embed(self, images: Sequence[Any]) -> dict[int, Any]:
        return {i: np.full(4, image.mean(), np.float32) for i, image in enumerate(images) if image.any()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(services, "build_fer", lambda name, settings: Fer())
    (tmp_path / "service.toml").write_text(TOML)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/notes.txt").write_text("not an image")
    for i, value in enumerate((0, 10, 30)):
        (tmp_path / f"photos/{i}.png").write_bytes(encode_png(np.full((8, 8, 3), value, np.uint8)))
    return tmp_path


def write(folder: Path) -> int:
    return services.main(["faces", str(folder / "service.toml"), str(folder / "photos"), str(folder / "out.npy")])


def test_the_faces_of_a_folder_are_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(folder) == 0
    assert np.load(folder / "out.npy").tolist() == [[10.0] * 4, [30.0] * 4]
    assert "2 faces in 3 images" in capsys.readouterr().out


def test_a_folder_without_a_face_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        (folder / f"photos/{i}.png").unlink()
    assert write(folder) == 1
    assert "no face in 1 images; give photographs that show one" in capsys.readouterr().err
    (folder / "service.toml").write_text('[scorers.bleu]\nkind = "bleu"\n')
    assert write(folder) == 1
    assert "has no scorer of kind fer" in capsys.readouterr().err


def test_a_truncated_photograph_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "photos/cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert write(folder) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path}: {path.stat().st_size} bytes of JPEG ")
    assert printed.count("\n") == 1


def test_a_missing_output_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "missing/out.npy"
    assert services.main(["faces", str(folder / "service.toml"), str(folder / "photos"), str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {out}: the folder {out.parent} does not exist; create it")
