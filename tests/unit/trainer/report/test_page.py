"""The page of a synthetic run: figures, images, and a run without steps."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synod.errors import SettingsError
from synod.images import ImageLimits, decode
from tests.unit.trainer.synthetic import PHASES, evaluation, images, make_run, record
from trainer.evaluate.compare import Evaluation
from trainer.evaluate.heldout import save_evaluation
from trainer.report.page import (
    FORESIGHT,
    charts,
    foresight,
    fragment,
    heldout,
    last_groups,
    phases,
    tiles,
    view,
    write_report,
)

STEPS = 30
VOID = {"meta", "img"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "a <run>", STEPS)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


class Balanced(HTMLParser):
    """Fails when tags are not balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escaped(run: Path, page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "polyline", "table", "img"} <= parser.seen
    assert "script" not in parser.seen
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page
    assert "url(" not in page
    assert "<title>a &lt;run&gt;: a training run" in page
    assert "prompt 0 &amp; all" in page
    assert "&lt;bo&gt; has a red hat" in page
    assert "<bo>" not in page
    assert not re.findall(
        r"\b(?:nan|None|inf)\b", re.sub(r"base64,[^\"]*|<style>.*?</style>", "", page, flags=re.DOTALL)
    )
    assert write_report(run).read_text() == page, "the same run gives the same page"


def test_tiles_by_hand(run: Path) -> None:
    found = dict(view(run)["tiles"])
    # rewards are .40 + .01 step: the means of steps 0..9 and 20..29
    assert found["reward, first 10 steps"] == "0.445"
    assert found["reward, last 10 steps"] == "0.645"
    assert found["pass rate"] == "25.0%"
    assert found["previews per step"] == "34.0"
    assert found["rewards missing"] == "1"
    assert found["peak host memory (rank 0)"] == "0.93 GiB"
    assert found["seconds per step"] == "13.0"


@pytest.mark.parametrize(
    ("steps", "first", "last"), [(1, "0.400", "0.400"), (3, "0.400", "0.420"), (4, "0.405", "0.425")]
)
def test_both_ends_of_a_short_run_do_not_overlap(steps: int, first: str, last: str) -> None:
    (_, one), (_, other) = tiles([{**record(k), "step": k} for k in range(steps)])[:2]
    assert (one, other) == (first, last)


def test_phases_add_up_to_the_step() -> None:
    found = phases([{**record(k), "step": k} for k in range(3)] + [{"step": 3, "seconds": {"total": None}}])
    assert [name for name, _, _ in found] == [*PHASES, "other"]
    assert math.fsum(share for _, _, share in found) == pytest.approx(1.0)
    shown = {name: (seconds, share) for name, seconds, share in found}
    assert shown["update"] == (pytest.approx(5.0), pytest.approx(5.0 / 13.0))
    assert shown["other"] == (pytest.approx(0.4), pytest.approx(0.4 / 13.0))
    assert phases([]) == []


def test_charts_show_what_was_measured() -> None:
    made = {chart["title"]: chart for chart in charts([{**record(k), "step": k} for k in range(STEPS)])}
    assert [line["label"] for line in made["Reward"]["lines"]] == ["all", "visual", "textual", "no reasoning"]
    assert [line["label"] for line in made["Components"]["lines"]] == ["ber", "der", "geneval", "tier"]
    assert [line["label"] for line in made["Largest ratio"]["lines"]] == ["image"], "no text ratio was ever measured"
    visual = [0.40 + 0.01 * k for k in range(0, STEPS, 3)]
    assert made["Reward"]["lines"][1]["last"] == pytest.approx(np.mean(visual))
    assert charts([]) == []


def test_the_kl_of_four_sampling_steps_is_drawn() -> None:
    """A step that `loss_step_fraction` left out has no point; fewer than four steps have a line each."""
    title = "KL of images to the reference, by sampling step"
    steps: list[list[float | None] | None] = [
        None,
        [0.0, 0.1, 0.2, None, 0.4, 0.5, 0.6],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    ]
    records = [{"step": i, "kl_image_by_step": one} for i, one in enumerate(steps)]
    (found,) = (one for one in charts(records) if one["title"] == title)
    assert [line["label"] for line in found["lines"]] == [f"step {i} of 7" for i in (1, 3, 5, 7)]
    assert (found["low"], found["high"], found["lines"][1]["last"]) == (0.0, 7.0, 1.6)
    (short,) = (one for one in charts([{"step": 0, "kl_image_by_step": [0.5, 0.7]}]) if one["title"] == title)
    assert [line["label"] for line in short["lines"]] == ["step 1 of 2", "step 2 of 2"]
    assert title not in {one["title"] for one in charts([{"step": 0, "kl_image_by_step": None}])}


@pytest.mark.parametrize(("draws", "saved"), [(1, ["0%", "50%", "30%", "0%"]), (2, ["0%", "50%", "40%", "0%"])])
def test_steps_saved_are_of_all_images_of_a_rollout(draws: int, saved: list[str]) -> None:
    """By hand: of 2G rollouts of ten steps an image, a screen at step 4 saves 6 G of 20 G; of two images, 16 G of 40 G.

    The later image of a rollout is drawn whole, and only of those that the screen keeps.
    """
    figures = {str(step): {"measured": 3} for step in (0, 4, 10)}
    line = {"previews": 12, "denoising_steps_unscreened": 12 * 10 * draws}
    screens = {"screens": {"none": 4}, "foresight": {"none": figures}, "signal_per_second": {"none": {}}}
    rows = [dict(zip(FORESIGHT, row, strict=True)) for row in foresight([{**line, **screens}])]
    assert [row["screen"] for row in rows] == ["no screen", "finished answers", "previews at step 4", "finished images"]
    assert [row["denoising steps saved"] for row in rows] == saved


def test_a_chart_by_hand() -> None:
    """Ten points from 0 to 9 and a running mean of ten values; a missing value has no point."""
    values: list[float | None] = [0.0, 1.0, None, *map(float, range(3, 11))]
    (made,) = charts([{"step": 5 + k, "reward_mean": value} for k, value in enumerate(values)])
    (line,) = made["lines"]
    assert (made["low"], made["high"], made["first"], made["last"]) == (0, 10, 5, 15)
    assert line["raw"].split()[:3] == ["0.00,100.00", "10.00,90.00", "30.00,70.00"]
    assert line["smooth"].split()[:3] == ["0.00,100.00", "10.00,95.00", "30.00,86.67"]
    assert line["last"] == pytest.approx(5.3)  # of the ten values after the first


def test_held_out_prompts_side_by_side(run: Path, page: str) -> None:
    shown = heldout(run)
    assert shown is not None
    rows = {label: (pair.n, pair.dropped, pair.verdict) for label, pair in shown["changes"]}
    assert rows["reward"] == (10, 2, "up")
    assert rows["tier"] == (4, 0, "")
    assert rows["right answers, textual attribute"][:2] == (4, 0)
    limits = ImageLimits(2**20, 2**20)
    for side, seed in zip(shown["pairs"][0], (0, 1), strict=True):
        np.testing.assert_array_equal(decode(base64.b64decode(side["data"]), limits), images(12, seed)[0])
    assert shown["pairs"][5][0]["failure"] == "scorer_failed"
    assert page.count("scorer_failed") == 3


def test_rewards_not_trained_on_stand_apart(tmp_path: Path) -> None:
    """By hand: the trained reward rises by 0.2 and the other falls from 0.6 to 0.4 and 0.3."""
    run = make_run(tmp_path / "run", 20, evaluated=())
    noise = [0.001 * (i % 3) for i in range(12)]

    def made(gain: float, heldout: float) -> Evaluation:
        rows = [
            replace(row, reward=0.5 + gain + e, heldout={"hps": heldout + e, "ber": 0.1}, heldout_reward=heldout + e)
            for row, e in zip(evaluation(0.0).rows, noise, strict=True)
        ]
        return Evaluation({"seed": 0}, tuple(rows))

    save_evaluation(run / "evaluation/before.json", made(0.0, 0.6))
    page = write_report(run).read_text()
    assert "Rewards that are not trained on" in page
    assert "Reward hacking" not in page
    save_evaluation(run / "evaluation/step-000010.json", made(0.2, 0.6))
    shown = heldout(run)
    assert shown is not None
    assert (shown["last"], shown["ended"], shown["warning"]) == ("step 10", False, None)
    save_evaluation(run / "evaluation/step-000010.json", made(0.2, 0.4))
    save_evaluation(run / "evaluation/after.json", made(0.2, 0.3))
    shown = heldout(run)
    assert shown is not None
    untrained = dict(shown["untrained"])
    assert untrained["reward"].difference == pytest.approx(-0.3)
    assert {name: change.verdict for name, change in untrained.items()} == {
        "reward": "down",
        "ber": "",
        "hps": "down",
    }
    assert "Reward hacking is likely" in write_report(run).read_text()
    assert shown["both"] == ["ber"]
    assert "Also part of the trained reward, so no check on it: ber" in write_report(run).read_text()
    lines = {line["label"]: line["raw"] for line in shown["chart"]["lines"]}
    assert [point.split(",")[0] for point in lines["trained reward"].split()] == ["0.00", "50.00", "100.00"]
    assert shown["chart"]["lines"][1]["last"] == pytest.approx(0.301)


def test_the_last_images_come_with_scores_and_answers(run: Path, page: str) -> None:
    shown = last_groups(run)
    assert shown is not None
    assert shown["step"] == STEPS - 1
    (group,) = shown["groups"]
    assert group["title"] == "colors/none: a photo"
    assert {kind: len(samples) for kind, samples in group["rows"].items()} == {
        "finished": 9,
        "previews": 9,
        "rejected": 4,
    }
    assert group["rows"]["finished"][3]["caption"] == "0.30"
    assert page.count("0.30: &lt;bo&gt; &amp; 29") == 3


def test_page_of_a_new_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has neither settings\.json nor metrics\.jsonl; give the"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "settings.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "No step is finished yet" in page
    assert "<svg" not in page
    assert "<table" not in page
    make_run(tmp_path / "one", 1, evaluated=("before",))
    page = write_report(tmp_path / "one").read_text()
    assert "No step is finished yet" not in page
    assert "before training" in page
    assert "The comparison is added when training ends" in page
    assert 'class="up">+' not in page


def test_incomparable_evaluations_keep_the_rest_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    save_evaluation(run / "evaluation/after.json", evaluation(0.1, count=5))
    page = write_report(run).read_text()
    assert "the evaluations differ in prompts or settings" in page
    assert "<svg" in page


def test_a_fragment_for_another_page(run: Path, page: str) -> None:
    style, body = fragment(run)
    assert style.strip() in page
    assert body.strip() in page
    assert "<html" not in body


def test_a_directory_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere is not a directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/before.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"before\.json is not an evaluation"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
