"""A dry run against an HTTP service: it draws, scores and updates, and leaves no file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.trainer.loops import AUTO, MakeSettings
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from trainer.dry_run import _auto_lines, _ranks_lines, dry_run


def test_a_dry_run_prints_time_memory_and_rewards(
    ready: MakeSettings,  # noqa: F811
    world_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = Judge()
    with serve(judge) as url:
        settings = ready(REWARDS__URL=url, STEPS="7")
        before = sorted(world_dir.rglob("*"))
        assert dry_run(settings) == 0
    said = capsys.readouterr().out
    assert sorted(world_dir.rglob("*")) == before
    assert not settings.run_dir.exists()
    for phase in ("load", "preview", "finish", "reward_wait", "update"):
        assert re.search(rf"^{phase} +\d+\.\d\d$", said, flags=re.MULTILINE), phase
    assert len(judge.asked[0][1]) > 0
    peaks = [float(peak) for peak in re.findall(r"(\d+\.\d+) GiB after", said)]
    assert len(peaks) == 3
    assert peaks == sorted(peaks)
    rewards = re.search(r"^reward: (.*)$", said, flags=re.MULTILINE)
    assert rewards is not None
    assert len(rewards[1].split()) == settings.screen.group_size
    assert "h for 7 steps without evaluation, on one device" in said
    assert re.search(r"^arithmetic of an update: \S+ GiB \(weights .*, activations ", said, flags=re.MULTILINE)


def test_the_time_on_several_ranks_is_that_of_their_groups(ready: MakeSettings) -> None:  # noqa: F811
    """Five groups of 2 s on two ranks: one has three of them."""
    (line,) = _ranks_lines(ready(PROMPTS_PER_STEP="5", RANKS__WORKERS="2"), 10.0)
    assert line.startswith("on 2 ranks, each with 3 of the 5 groups of a step at most: 6.0 s a step at best")
    (line,) = _ranks_lines(ready(PROMPTS_PER_STEP="5"), 10.0)
    assert "at most the 5 groups" in line


def test_the_estimate_says_what_auto_adds(ready: MakeSettings) -> None:  # noqa: F811
    (line,) = _auto_lines(ready(**{**AUTO, "SCREEN__GROUP_SIZE": "9"}))
    assert 'select "auto" finishes 18 images in the first groups and in 20% of the others' in line
    assert _auto_lines(ready()) == []
