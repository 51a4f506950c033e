"""Where tokens start: centres, faces, class words, and regions of drawn images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from tests.unit.trainer.personalize.tiny_concept import DOT, make_rows
from trainer.personalize import initialise
from trainer.personalize.initialise import Region, face_rows, find_regions, kmeans, region_images, region_rows
from trainer.personalize.tokens import insert
from trainer.policy.show_o.policy import ShowO

PROMPT = "a photo of <dot>"


@pytest.fixture
def owner(make_policy: Callable[..., ShowO]) -> ShowO:
    policy = make_policy(denoising_steps=10)
    insert(policy, DOT, make_rows(DOT.count))
    return policy


def test_centres_of_separate_clusters_are_their_means() -> None:
    clusters = [torch.randn(count, 3) * 0.01 + place for count, place in ((9, 0.0), (5, 10.0), (2, -10.0))]
    found = kmeans(torch.cat(clusters)[torch.randperm(16)], 3)
    torch.testing.assert_close(found, torch.stack([one.mean(0) for one in clusters]), atol=1e-5, rtol=1e-5)


def test_few_different_points_repeat() -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    assert kmeans(points, 5).tolist() == [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]
    assert kmeans(points, 0).shape == (0, 2)


def test_the_name_starts_at_its_class_words(policy: ShowO) -> None:
    ids = [policy.vocab.id("red"), policy.vocab.id("cat")]
    rows = initialise.name_row(policy, "red cat")
    head = policy.phi.lm_head
    torch.testing.assert_close(rows.embed_RD[0], policy.phi.model.embed_tokens.weight[ids].mean(0))
    torch.testing.assert_close(rows.head_RD[0], (head.weight[ids[0]] + head.weight[ids[1]]) / 2)
    torch.testing.assert_close(rows.bias_R[0], (head.bias[ids[0]] + head.bias[ids[1]]) / 2)
    with pytest.raises(SettingsError, match="the class '' has no tokens"):
        initialise.name_row(policy, "")


def test_public_rows_are_those_of_codes(owner: ShowO) -> None:
    rows, offset = initialise.public_rows(owner, 3), owner.vocab.image_offset
    assert torch.equal(rows.embed_RD, owner.phi.model.embed_tokens.weight[offset : offset + 3])
    assert torch.equal(rows.bias_R, owner.phi.lm_head.bias[offset : offset + 3])


def test_faces_are_interpolated(tmp_path: Path) -> None:
    faces = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    np.save(tmp_path / "faces.npy", faces)
    found = face_rows(tmp_path / "faces.npy", 3, 10).numpy()
    for part, row in zip(faces.mean(0).reshape(3, 4), found, strict=True):
        places = (np.arange(10) + 0.5) * 4 / 10 - 0.5  # sample centres, as torch without align_corners
        np.testing.assert_allclose(row, np.interp(places, np.arange(4), part), atol=1e-6)


@pytest.mark.parametrize(
    ("faces", "count", "message"),
    [
        (np.zeros((2, 12), np.float32), 5, "12 numbers cannot be cut into 5 equal tokens"),
        (np.zeros((2, 12), np.float32), 0, "cannot be cut into 0"),
        (np.zeros((0, 12), np.float32), 3, "at least one face; give images with a face"),
        (np.full((2, 12), np.nan, np.float32), 3, "has NaN or infinity"),
        (np.zeros(12, np.float32), 3, "expected \\[faces, size\\]"),
        (np.zeros((2, 12), int), 3, "expected \\[faces, size\\] of floating point"),
        (np.array([{}]), 3, "cannot be read"),
    ],
)
def test_bad_faces_are_refused(tmp_path: Path, faces: np.ndarray, count: int, message: str) -> None:
    np.save(tmp_path / "faces.npy", faces, allow_pickle=True)
    with pytest.raises(SettingsError, match=message):
        face_rows(tmp_path / "faces.npy", count, 8)


@pytest.mark.parametrize("content", ["", "PK", "archive"])
def test_files_that_are_no_array_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "faces.npy"
    if content == "archive":
        with path.open("wb") as file:
            np.savez(file, faces=np.zeros((2, 12), np.float32))
    else:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"cannot be read .*python -m services faces"):
        face_rows(path, 3, 8)


def test_regions_are_where_late_draws_differ(owner: ShowO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "IMAGES", 6)
    found = {mode: find_regions(owner, PROMPT, mode, 1, (0,)) for mode in ("paper", "public", "random_patch")}
    images = owner.denoise(owner.start([PROMPT] * 6, [(0, i) for i in range(6)]), 10)
    for i, image in enumerate(images):  # n = .2 T = 2, m = .7 T = 7
        draws = image.codes_TN
        assert torch.equal(found["paper"][i].codes_N, draws[9])
        assert torch.equal(found["paper"][i].late_N, draws[6])
        assert torch.equal(found["paper"][i].chosen_N, draws[6] != draws[1])
        assert int(found["random_patch"][i].chosen_N.sum()) == int((draws[6] != draws[1]).sum())
        if not found["public"][i].topped_up:
            assert torch.equal(found["public"][i].chosen_N, draws[6] != draws[9])
    pairs = zip(found["paper"], found["random_patch"], strict=True)
    assert any(not torch.equal(a.chosen_N, b.chosen_N) for a, b in pairs)
    full = find_regions(owner, PROMPT, "full_image", 1, (0,))
    assert all(bool(one.chosen_N.all()) for one in full)
    assert find_regions(owner, PROMPT, "none", 1, (0,)) == []


def test_small_regions_get_the_least_confident(owner: ShowO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "IMAGES", 4)
    regions = find_regions(owner, PROMPT, "public", 14, (0,))
    images = owner.denoise(owner.start([PROMPT] * 4, [(0, i) for i in range(4)]), 10)
    assert any(one.topped_up for one in regions)
    for region, image in zip(regions, images, strict=True):
        changed = image.codes_TN[6] != image.codes_TN[9]
        if not region.topped_up:
            continue
        assert int(region.chosen_N.sum()) == 14
        assert bool(region.chosen_N[changed].all())
        last = [max(t for t in range(10) if image.masked_TN[t, n]) for n in range(16)]
        sure = [float(image.logp_TN[t, n]) for n, t in enumerate(last)]
        added = [sure[n] for n in range(16) if region.chosen_N[n] and not changed[n]]
        left = [sure[n] for n in range(16) if not region.chosen_N[n]]
        assert max(added) <= min(left)


def rows_of_codes(policy: ShowO, codes: Tensor) -> Tensor:
    return policy.phi.model.embed_tokens.weight[codes + policy.vocab.image_offset]


def test_region_rows_are_centres_of_final_codes(owner: ShowO) -> None:
    codes = torch.tensor([0, 1, 2, 3] * 4)
    chosen = codes < 2
    found = region_rows(owner, [Region(codes, codes.flip(0), chosen)], "paper", 2)
    expected = rows_of_codes(owner, torch.tensor([0, 1]))
    assert {tuple(row.tolist()) for row in found} == {tuple(row.tolist()) for row in expected}
    text = owner.phi.model.embed_tokens.weight[: owner.vocab.image_offset].mean(0)
    torch.testing.assert_close(region_rows(owner, [], "none", 2), text.expand(2, -1))


def test_public_regions_are_painted_and_encoded_again(owner: ShowO) -> None:
    codes = torch.arange(16)
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[5] = True  # row 1, column 1, of patches of 2 x 2 pixels
    (painted,) = region_images(owner, [Region(codes, codes, chosen)])
    drawn = owner.vq.decode(codes[None])[0]
    expected = drawn.copy()
    expected[2:4, 2:4] = 255
    assert np.array_equal(painted, expected)
    found = region_rows(owner, [Region(codes, codes, chosen)], "public", 16)
    again = {tuple(row.tolist()) for row in rows_of_codes(owner, owner.vq.encode([expected])[0])}
    assert {tuple(row.tolist()) for row in found} == again
