"""The benchmark of learning with a tiny policy: its file, its image, and its verdicts."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import learning
from benchmarks.grid import GAP, LINE, LINES, SIDE, before_after, caption
from benchmarks.learning import RUNS, verdicts
from benchmarks.measures import Change
from tests.unit.benchmarks.trained_rewards import Service, config, permuted, stepped  # noqa: F401
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy
from tests.unit.trainer.synthetic import make_run
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer.evaluate.compare import Row
from trainer.evaluate.heldout import AFTER, BEFORE, image_files
from trainer.policy.show_o.policy import ShowO
from trainer.settings import TrainerSettings


def test_both_runs_are_trained_and_written(
    tmp_path: Path,
    config: Path,  # noqa: F811
    make_policy: MakePolicy,  # noqa: F811
    permuted: list[int],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[trainer.optimizer]\nlr = 0.25\n")
    options = Namespace(arm="plain_9", config=config, runs=tmp_path / "runs", seed=0, prompts=6, steps=1, minutes=30.0)
    options.url, options.changes, options.out, options.shown = None, [other], tmp_path / "learning.json", 4
    settings = {name: learning._settings(options, name) for name in RUNS}
    assert {one.optimizer.lr for one in settings.values()} == {0.25}

    def policy_of(given: TrainerSettings) -> ShowO:
        policy = make_policy(positions=given.policy.positions, confidence=given.policy.sampler.confidence)
        policy.keep_reference()
        return policy

    services = {name: Service() for name in RUNS}
    for name in RUNS:
        assert learning.train_run(name, settings[name], policy_of, services[name], [np.inf], options.runs)
        assert permuted == ([] if name == "rewards" else [9])
    evaluation = (len(services["rewards"].sizes) - 3) // 2  # two of them, and a group of nine images in threes
    assert len(services["permuted"].sizes) == 1 + evaluation, "the start is evaluated once for both"
    learning._write(options, settings)
    found = json.loads(options.out.read_text())
    assert {"command", "commit", "machine", "arm", "seed", "settings", "verdicts", "image", *RUNS} <= set(found)
    for name in RUNS:
        assert (found[name]["steps"], found[name]["minutes"], found[name]["masked"]) == (1, 1.0, 0)
        assert found[name]["heldout"]["image part"]["n"] == 6
        assert found[name]["by_measure"]["image part"]["n"] == 6
    assert set(found["verdicts"]) == set(verdicts({}, {}))
    with Image.open(tmp_path / found["image"]) as image:
        assert image.size == (4 * (2 * SIDE + 3 * GAP), LINE + GAP + SIDE + (LINES + 1) * LINE + 2 * GAP)
    assert "image part" in capsys.readouterr().out


def change(difference: float, stderr: float | None, by_prompt: float | None = None) -> Change:
    return Change(0.5, 0.5 + difference, difference, stderr, by_prompt, 100, 10, 0)


def test_verdicts_by_hand() -> None:
    """The larger of both errors counts: .06 is 3.75 of .016, and less than 3 of .021."""
    trained = {"image part": change(0.06, 0.016), "geneval official": change(-0.03, 0.02), "tier": change(-0.05, 0.02)}
    found = verdicts(trained, {"image part": change(-0.02, 0.005, 0.011)})
    assert list(found.values()) == [True, True, True, False, True]
    found = verdicts({"image part": change(0.06, 0.016, 0.021)}, {"image part": change(-0.02, 0.009)})
    assert list(found.values()) == [False, True, None, None, False]
    assert set(verdicts({}, {"image part": change(0.1, None)}).values()) == {None}


def test_grid_shows_the_first_images_of_both_sides(tmp_path: Path) -> None:
    """Pixels of the page are those of the files, at twice, four times, ... their size."""
    run = make_run(tmp_path / "run", 1)
    page = np.asarray(before_after(run, 5, columns=2))
    scale = SIDE // 16
    for place in range(5):
        row, column = divmod(place, 2)
        x = column * (2 * SIDE + 3 * GAP) + GAP
        y = row * (SIDE + (LINES + 1) * LINE + 2 * GAP) + LINE + GAP
        for side, name in enumerate((BEFORE, AFTER)):
            shown = page[y : y + SIDE : scale, x + side * (SIDE + 4) : x + side * (SIDE + 4) + SIDE : scale]
            np.testing.assert_array_equal(shown, np.asarray(Image.open(image_files(run / name)[place])))
    assert page.shape[0] == 3 * (SIDE + (LINES + 1) * LINE + 2 * GAP) + LINE + GAP


def test_captions_are_cut_and_have_both_scores() -> None:
    one = Row("k", "none", "t", "a photo of a red cat " * 10, "", 0.5, {}, None, image_part=0.25)
    found = caption(one, Row("k", "none", "t", one.prompt, "", None, {}, None))
    assert len(found) == LINES + 1
    assert found[LINES - 1].endswith("…")
    assert all(len(text) <= 2 * SIDE // 6 for text in found)
    assert found[-1] == "0.25 -> missing"
