"""Correlations and ceilings of half-drawn images: against scipy, by hand, and with a tiny policy."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import screening_table
from benchmarks.screening_rho import PAIRS, PART, REWARD, Plan, correlation, markdown, table
from benchmarks.screening_table import measure, measure_all
from synod.errors import SettingsError
from tests.unit.benchmarks.trained_rewards import Killed, Service, config, stepped  # noqa: F401
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy, MakeSettings
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer.clock import Clock
from trainer.data.source import heldout_tasks
from trainer.policy.show_o.segments import ImageSegment
from trainer.turns import continue_images, start

PLAN = Plan(rollouts=4, steps=(1, 3), completions=3, scorer="ber")
NUMBER = {"type": ["number", "null"]}
SCHEMA = {
    "required": ["prompts", "rollouts", "completions", "steps", "scorer", "correlations", "ceilings"],
    "properties": {
        "correlations": {
            "items": {
                "required": [
                    "task",
                    "surrogate",
                    "target",
                    "step",
                    "spearman",
                    "spearman_stderr",
                    "pearson",
                    "prompts",
                ],
                "properties": {"spearman": {"type": "number", "minimum": -1, "maximum": 1}, "pearson_stderr": NUMBER},
            }
        },
        "ceilings": {"items": {"required": ["task", "target", "step", "share", "share_stderr", "rho", "prompts"]}},
    },
}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = ([float(one[side]) for one in pairs] for side in (0, 1))
    with warnings.catch_warnings(action="ignore"):
        expected = [float(test(x, y).statistic) for test in (stats.spearmanr, stats.pearsonr)]
    found = [correlation(x, y, ranked=True), correlation(x, y)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == math.isnan(theirs)
        assert ours is None or ours == pytest.approx(theirs, abs=1e-9)


def test_a_missing_score_has_no_correlation() -> None:
    assert correlation([0.0, None, 1.0], [0.0, 1.0, 2.0]) is None


def measured(task: str, preview: list[float], final: list[float], other: list[float]) -> dict[str, Any]:
    """A prompt of three images at step 1; each state has two completions, `final` and `other`."""
    values = {REWARD: final, PART: final, "known": [0.0, 0.1, 0.2], "der": [None] * 3, "surrogate": final}
    scores = {**values, REWARD: preview, PART: preview, "surrogate": preview}
    completions = {name: [final, other] for name in (REWARD, PART)}
    return {"task": task, "final": values, "steps": {"1": {"preview": scores, "completions": completions}}}


def test_cells_are_means_over_prompts_by_hand() -> None:
    """Ranks 1 2 3 against 1 2 3 and 1 3 2: Spearman 1 and .5. The first's states decide all, the second's a part."""
    found = table(
        [
            measured("visual", [0.0, 1.0, 2.0], [1.0, 2.0, 9.0], [1.0, 2.0, 9.0]),
            measured("visual", [0.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),
            measured("none", [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ],
        Plan(3, (1,), 2, "ber"),
    )
    jsonschema.validate(found, SCHEMA)
    cells = {(c["task"], c["surrogate"], c["target"]): c for c in found["correlations"]}
    one = cells["visual", REWARD, REWARD]
    assert (one["spearman"], one["spearman_stderr"], one["prompts"]) == (0.75, pytest.approx(0.25), 2)
    assert ("none", REWARD, REWARD) not in cells, "a surrogate without spread has no correlation"
    assert cells["none", "known", REWARD]["step"] == 0
    assert cells["all", "known", REWARD]["spearman"] == pytest.approx(1.0)
    assert found["prompts"] == {"all": 3, "visual": 2, "textual": 0, "none": 1}
    # second prompt: within (2 + 0 + 2) / 3, means all 2, between -2/3: share -1; the mean of 1 and -1 is 0
    ceiling = {(c["task"], c["target"]): c for c in found["ceilings"]}
    assert ceiling["visual", PART]["share"] == pytest.approx(0.0)
    assert (ceiling["visual", PART]["rho"], ceiling["none", PART]["rho"]) == (pytest.approx(0.0), pytest.approx(1.0))
    shown = markdown(found).splitlines()
    assert "| visual (2) | known+predicted -> reward |  | +0.75 ± 0.25 |" in shown
    assert "| GenEval (1) | at most, any function of the state -> reward |  | 1.00 (share +1.00) |" in shown
    assert {line.count("|") for line in shown} == {5}


def test_completions_share_their_state_and_nothing_after(
    make_policy: MakePolicy,  # noqa: F811
    tiny_settings: MakeSettings,  # noqa: F811
) -> None:
    settings, policy = tiny_settings(DATA__GENEVAL_SHARE="1.0"), make_policy()
    (task,) = heldout_tasks(settings, 1, 1)
    began = start(policy, [task] * 4, [(1, 0, i) for i in range(4)], Clock())
    states = continue_images(policy, began, 3)
    finished = screening_table._finished(policy, states, (1, 0, 3, 1))
    own = continue_images(policy, states, policy.image_steps)
    same = 0
    for state, one, other in zip(states, own, finished, strict=True):
        a, b, c = state.image, one.image, other.image
        assert isinstance(a, ImageSegment)
        assert isinstance(b, ImageSegment)
        assert isinstance(c, ImageSegment)
        assert torch.equal(c.codes_TN[:3], a.codes_TN)
        fixed = ~a.remasked_N
        assert torch.equal(c.codes_TN[-1][fixed], b.codes_TN[-1][fixed])
        assert not torch.equal(c.uniform_T2N, b.uniform_T2N)
        same += torch.equal(c.codes_TN[-1], b.codes_TN[-1])
    assert same < 4


def test_a_prompt_is_measured_with_a_tiny_policy(
    tmp_path: Path,
    make_policy: MakePolicy,  # noqa: F811
    tiny_settings: MakeSettings,  # noqa: F811
) -> None:
    """The figures are those of the service's rewards; a killed measurement goes on with equal ones."""
    settings, policy = tiny_settings(DATA__GENEVAL_SHARE="0.4"), make_policy()
    tasks = heldout_tasks(settings, 1, 3)
    with torch.no_grad():
        found = measure(policy, Service(), tasks[0], PLAN, (1, 0))
    final = found["final"]
    assert np.subtract(final[REWARD], final[PART]) == pytest.approx(final["known"])
    for step in found["steps"].values():
        for name in (REWARD, PART):
            assert np.shape(step["completions"][name]) == (3, 4)
            assert step["completions"][name][0] == final[name]
            assert step["completions"][name][1] != final[name]
    whole = list(measure_all(policy, Service(), tasks, PLAN, 1, tmp_path / "whole"))
    assert whole[0] == json.loads(json.dumps(found))
    with pytest.raises(Killed):
        list(measure_all(policy, Service(dies_at=15), tasks, PLAN, 1, tmp_path / "again"))
    kept = len(list((tmp_path / "again").iterdir()))
    assert 1 <= kept < 3
    assert list(measure_all(policy, Service(), tasks, PLAN, 1, tmp_path / "again", deadline=-math.inf)) == whole[:kept]
    assert list(measure_all(policy, Service(), tasks, PLAN, 1, tmp_path / "again")) == whole
    jsonschema.validate(table(whole, PLAN), SCHEMA)
    assert {(c["surrogate"], c["target"]) for c in table(whole, PLAN)["correlations"]} <= set(PAIRS)


def test_steps_and_sizes_outside_are_refused(
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a model is loaded."""
    monkeypatch.setattr(screening_table, "make_policy", lambda settings: pytest.fail("a model was loaded"))
    for plan, message in (
        (Plan(4, (0, 1), 3, "ber"), "--steps 0: an image has 4 denoising steps; give 1 to 3"),
        (Plan(4, (4,), 3, "ber"), "--steps 4"),
        (Plan(4, (1,), 1, "ber"), "--completions 1: a spread needs two"),
    ):
        with pytest.raises(SettingsError, match=message):
            screening_table._check(plan, 4)
    files = ["--config", str(config), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "table.json")]
    with pytest.raises(SettingsError, match="--steps 4: an image has 4 denoising steps; give 1 to 3"):
        screening_table.main([*files, "--steps", "4", "2"])
