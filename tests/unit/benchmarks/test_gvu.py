"""The benchmark of self-supervised training with a tiny start: one step, its file, and that it continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gvu
from benchmarks.measures import Change
from embedded.makers.show_o import CAPTION_MIX, CAPTION_RECIPE, LEARNING_MIX, BatchMix
from tests.unit.trainer import reward_services
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.tiny_show_o import make_show_o, make_vocabulary, make_vq


def test_one_step_is_trained_compared_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", [{"name": "geneval", "needs": ["image", "geneval"]}])
    monkeypatch.setattr(gvu, "commit", lambda: "none")  # it asks git
    made = make_show_o(make_vocabulary(tmp_path / "words"), make_vq())
    made.save(tmp_path / "runs/starts/weak-captions")  # as if the makers were done
    made.save(tmp_path / "runs/starts/weak")
    text = gvu.ROOT.joinpath("deploy/configs/gvu_embedded.toml").read_text().replace("../../", f"{gvu.ROOT}/")
    small = {"denoising_steps = 10": "denoising_steps = 4", "group_size = 8": "group_size = 4"}
    for before, after in small.items():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "gvu.toml").write_text(text.replace(f"{gvu.ROOT}/embedded/weights/magvit-world", f"{tmp_path}/vq"))
    made.vq.save(tmp_path / "vq")
    with serve(Judge()) as url:
        folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "found.json"), "--url", url]
        options = ["--config", str(tmp_path / "gvu.toml"), "--steps", "1", "--prompts", "4", "--shown", "2", *folders]
        assert gvu.main([*options, "--start", "weak"]) == 0
        first = json.loads((tmp_path / "found.json").read_text())
        assert gvu.main([*options, "--start", "weak"]) == 0  # nothing is left to do
        assert gvu.main([*options, "--start", "weak", "--permuted"]) == 0
    assert set(first) == {"weak", "gain in geneval official"}
    weak, control = first["weak"], json.loads((tmp_path / "found.json").read_text())["weak_permuted"]
    assert control["settings"] | {"reward_batch_size": 8} == weak["settings"]  # with the same start
    assert control["heldout"]["reward"]["before"] == weak["heldout"]["reward"]["before"]
    assert control["heldout"]["reward"]["after"] != weak["heldout"]["reward"]["after"]
    assert control["verdicts"].keys() == gvu.verdicts({}, permuted=True).keys()
    assert (weak["steps"], weak["heldout"]["reward"]["n"]) == (1, 4)
    assert 0 < weak["intrinsic_first_20_steps"] < 1
    assert weak["verdicts"].keys() == gvu.verdicts({}).keys()
    assert (tmp_path / "found_weak.png").exists()
    assert json.loads((tmp_path / "found.json").read_text())["weak"]["heldout"] == weak["heldout"]


def test_a_weak_start_is_fewer_steps_of_the_same_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, BatchMix, Path | None]] = []

    def record(directory: Path, recipe: gvu.Recipe, build: Path, mix: BatchMix, start: Path | None, **_: bool) -> Path:
        made.append((directory.name, recipe.steps, mix, start))
        return directory

    monkeypatch.setattr(gvu, "_made", record)
    assert gvu.prepare("normal", tmp_path, tmp_path) == tmp_path / "normal-captions"
    assert gvu.prepare("weak", tmp_path, tmp_path) == tmp_path / "weak-captions"
    captions = CAPTION_RECIPE.steps
    assert made == [
        ("normal-captions", captions, CAPTION_MIX, gvu.ROOT / "embedded/weights/show-o-world"),
        ("weak", 600, LEARNING_MIX, None),
        ("weak-captions", captions, CAPTION_MIX, tmp_path / "weak"),
    ]


@pytest.mark.parametrize(("rise", "verdict"), [(0.03, True), (0.01, False)])
def test_a_rise_counts_above_two_errors(rise: float, verdict: bool) -> None:
    changes = {"reward": Change(0.2, 0.2 + rise, rise, 0.01, 0.009, 100, 100, 0)}
    assert gvu.verdicts(changes) == {
        "intrinsic reward up by 2 errors": verdict,
        "geneval official not down by 2 errors": None,  # not measured
    }


@pytest.mark.parametrize(("rise", "verdict"), [(0.03, False), (0.01, True), (-0.03, False)])
def test_a_control_must_not_move(rise: float, verdict: bool) -> None:
    changes = {"geneval soft": Change(0.2, 0.2 + rise, rise, 0.01, 0.009, 100, 100, 0)}
    assert gvu.verdicts(changes, permuted=True) == {
        "reward within 2 errors of 0": None,  # not measured
        "geneval soft within 2 errors of 0": verdict,
        "geneval official within 2 errors of 0": None,
    }
