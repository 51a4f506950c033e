"""The benchmark of UniRL-Zero's scenarios: its files, its verdicts by hand, and its command with tiny models."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import unirl, unirl_data
from embedded import world
from synod.errors import SettingsError
from tests import tiny_vlm
from tests.unit.trainer import reward_services
from tests.unit.trainer.reward_services import Judge, brightness_or_length, serve
from tests.unit.trainer.tiny_flow import write_pipeline
from trainer.data.lines import read_lines
from trainer.evaluate.heldout import AFTER

NEEDS = {
    "geneval": ["image", "geneval"],
    "clip_direction": ["image", "prompt", "references", "source_prompt"],
    "clip_i": ["image", "references"],
    "like_source": ["image", "references"],
    "format": ["reasoning"],
    "recognition": ["reasoning"],
    "reflection": ["reasoning"],
}
WORDS = ("a", "photo", "of", "image", "this", "prompt", "answer", "Yes", "No")


@pytest.mark.parametrize("part", list(unirl.PARTS))
def test_a_part_is_measured_from_the_command_line(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", [{"name": n, "needs": of} for n, of in NEEDS.items()])
    monkeypatch.setattr("benchmarks.flow.commit", lambda: "0000000")
    monkeypatch.setattr(unirl, "TRAINED_ON", 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_vlm.qwen(tmp_path / "words", WORDS)
    model = str(write_pipeline(tmp_path / "model", "sana"))
    small = {
        "POLICY__MODEL": model,
        "POLICY__MAX_TEXT_LENGTH": "8",
        "POLICY__SAMPLER__DENOISING_STEPS": "4",
        "POLICY__LANGUAGE__MODEL": str(tmp_path / "words"),
        "POLICY__LANGUAGE__MAX_NEW_TOKENS": "4",
        "PROMPTS_PER_STEP": "1",
    }
    for name, value in small.items():
        monkeypatch.setenv(f"SYNOD__TRAINER__{name}", value)
    out = tmp_path / "found.json"
    with serve(Judge(brightness_or_length)) as url:
        given = ["--only", part, "--url", url, "--runs", str(tmp_path / "runs"), "--out", str(out)]
        given += ["--steps", "1", "--prompts", "3", "--editor", model]
        assert unirl.main([*given, "--hours", "0"]) == 1
        assert not out.exists()
        assert unirl.main(given) == 0
        assert unirl.main(given) == 0  # nothing is trained again
    found = json.loads(out.read_text())[part]
    assert found["command"].startswith("python -m")
    runs = {"questions": ("rewards", "permuted"), "reasoning": tuple(unirl.ARMS)}.get(part, ())
    for one in [found[name] for name in runs] or [found]:
        assert one["steps"] == 1
        talked = one["reply characters, first and last 10 steps"]
        assert (talked == [None, None]) == (part == "edits")
    if part == "edits":
        curves = found["similarities"]["by guidance"]
        assert [len(curve) for curve in curves.values()] == [4, 4]
        assert curves["before"]["1.0"] != curves["after"]["1.0"]
    if part == "reflection":
        counts = [found["right"][name]["n"] for name in ("wrong images", "right images")]
        assert sum(counts) <= 3


def test_a_finished_run_without_its_policy_is_refused(tmp_path: Path) -> None:
    """It would save the policy that training starts from as the trained one."""
    after = tmp_path / "edits" / AFTER
    after.parent.mkdir(parents=True)
    after.write_text("{}")
    options = unirl._parser().parse_args(["--runs", str(tmp_path)])
    with pytest.raises(SettingsError, match=r"its trained policy is lost; remove .*edits to train again"):
        unirl.train_edits(options, math.inf)


class Model:
    """A policy of one file, whose save may be killed before the end."""

    def __init__(self, text: str, *, is_killed: bool) -> None:
        self.text, self.is_killed = text, is_killed

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / self.text).touch()
        if self.is_killed:
            raise KeyboardInterrupt


def test_a_policy_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    killed: Any = Model("half", is_killed=True)
    again: Any = Model("whole", is_killed=False)
    with pytest.raises(KeyboardInterrupt):
        unirl.save_whole(killed, tmp_path / "trained")
    assert not (tmp_path / "trained").exists()
    unirl.save_whole(again, tmp_path / "trained")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["trained", "trained/whole"]


def test_files_are_about_their_split_and_reproducible(tmp_path: Path) -> None:
    held_out = {prompt.text for prompt in world.PROMPTS_HELDOUT}
    for task in unirl_data.DRAW:
        paths = [unirl_data.write(tmp_path / folder, task, "heldout", 40) for folder in "ab"]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        lines = read_lines(paths[0], task, check_images=True)
        assert len(lines) == 40
        trained = read_lines(unirl_data.write(tmp_path / "a", task, "train", 40), task)
        if task == "questions":
            continue
        about = "caption" if task == "edits" else "text"
        assert all(getattr(line, about) in held_out for line in lines)
        assert not any(getattr(line, about) in held_out for line in trained)


def test_both_answers_are_right_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    for task in ("questions", "reflection"):
        truths = [unirl_data.DRAW[task]("train", rng)[0]["truth"] for _ in range(200)]
        yes = Counter(truth is True or truth == [1, 0] for truth in truths)[True]
        assert 70 <= yes <= 130, task


def test_wrong_images_show_another_prompt() -> None:
    """The verdict is the world's own: the image of a wrong line never satisfies its prompt by its objects."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        line, image = unirl_data.reflection("train", rng)
        assert image.shape == (64, 64, 3)
        assert line["include"]
        assert isinstance(line["truth"], bool)


def test_points_of_a_curve_are_compared_at_equal_likeness() -> None:
    before = [(0.1, 0.9), (0.2, 0.8), (0.3, 0.6), (0.35, 0.5)]
    better = [(0.2, 0.9), (0.3, 0.8), (0.4, 0.6), (0.45, 0.5)]
    assert unirl.above(before, better) == 4
    assert unirl.above(before, before) == 0
    assert unirl.above(better, before) == 0
    moved = [(0.15, 0.85), (0.25, 0.7), (0.34, 0.55), (0.35, 0.5)]  # at .9: .15, at .8: .183, at .6: .31
    assert unirl.above(before, moved) == 2
