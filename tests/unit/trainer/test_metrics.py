"""The lines of a run: never NaN, cut where a run goes on, readable after a kill; TensorBoard holds the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from synod.errors import SettingsError
from trainer.grids import load_grid
from trainer.metrics import METRICS, TEXTS, Metrics, grids, read, steps_saved

IMAGE = np.zeros((4, 4, 3), np.uint8)


def write(run: Path, steps: range, *, resume_at: int = 0, mark: str = "") -> None:
    with Metrics(run, resume_at=resume_at) as metrics:
        for step in steps:
            metrics.log(step, {"reward": step / 10, "mark": mark})
            metrics.images(step, "group0", [("row", [(mark, IMAGE)])])
            metrics.text(step, "group0", mark)


def test_a_line_is_on_the_disk_when_log_returns_and_holds_no_nan(tmp_path: Path) -> None:
    with Metrics(tmp_path / "new/run") as metrics:
        values = {"a": float("nan"), "b": {"c": [np.float32("inf"), np.float64(0.5), 2, True]}, "d": None, "e": "<ö>"}
        metrics.log(3, values)
        text = (tmp_path / "new/run" / METRICS).read_text()
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 3, "a": None, "b": {"c": [None, 0.5, 2, True]}, "d": None, "e": "<ö>"
    }  # fmt: skip
    assert read(tmp_path / "new/run") == [json.loads(text)]


def test_a_run_that_goes_on_forgets_what_is_trained_again(tmp_path: Path) -> None:
    write(tmp_path, range(5), mark="first")
    write(tmp_path, range(3, 6), resume_at=3, mark="second")
    expected = [(0, "first"), (1, "first"), (2, "first"), (3, "second"), (4, "second"), (5, "second")]
    assert [(r["step"], r["mark"]) for r in read(tmp_path)] == expected
    assert [(r["step"], r["text"]) for r in read(tmp_path, TEXTS)] == expected
    assert [(step, load_grid(path)[0][1][0][0]) for path, _, step in grids(tmp_path)] == expected
    write(tmp_path, range(0), resume_at=2)
    assert [len(read(tmp_path)), len(read(tmp_path, TEXTS)), len(grids(tmp_path))] == [2, 2, 2]
    write(tmp_path, range(1), mark="anew")
    assert [(r["step"], r["mark"]) for r in read(tmp_path)] == [(0, "anew")]


def test_a_line_cut_short_by_a_kill_is_left_out_and_written_over(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 2, "rew')
    assert [r["step"] for r in read(tmp_path)] == [0, 1]
    write(tmp_path, range(2, 3), resume_at=2)
    assert [r["step"] for r in read(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"step": "1"}', '{"step": 1', "\xff"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n', encoding="latin-1")
    with pytest.raises(SettingsError, match=r"metrics\.jsonl:2: not a line"):
        Metrics(tmp_path, resume_at=3)


def test_a_run_that_has_not_begun_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere") == []
    assert grids(tmp_path / "nowhere") == []


def test_images_come_by_step_and_name(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for step, name in ((10, "group1"), (2, "group0"), (10, "group0"), (1_000_000, "group0")):
            path = metrics.images(step, name, [("", [("", IMAGE)])])
            assert path == tmp_path / "images" / f"{name}-{step:06d}.png"
        (tmp_path / "images/other.png").touch()
    found = [(name, step) for _, name, step in grids(tmp_path)]
    assert found == [("group0", 2), ("group0", 10), ("group1", 10), ("group0", 1_000_000)]


def test_tensorboard_holds_the_finite_numbers_the_images_and_the_texts(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log(1, {"reward": 0.5, "seconds": {"total": 2}, "lost": float("nan"), "mark": "x", "none": None})
        metrics.log(2, {"reward": 0.75})
        metrics.images(2, "group0", [("", [("", IMAGE)])])
        metrics.text(2, "group0", "an *answer*\nand more")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert sorted(tags["scalars"]) == ["reward", "seconds/total"]
    assert [(e.step, e.value) for e in board.Scalars("reward")] == [(1, 0.5), (2, 0.75)]
    assert [e.step for e in board.Images("group0")] == [2]
    assert board.Tensors("group0/text_summary")[0].tensor_proto.string_val == [b"    an *answer*\n    and more"]


def test_what_a_run_saved_is_of_all_its_steps_not_the_mean_of_their_shares() -> None:
    """Steps of 10 and of 90: a mean of shares would be (.5 + .0) / 2."""
    steps = [
        {"denoising_steps": 5, "denoising_steps_unscreened": 10},
        {"denoising_steps": 90, "denoising_steps_unscreened": 90},
    ]
    assert steps_saved(steps) == pytest.approx(0.05)
    assert steps_saved([]) is None
