"""A dry run against an HTTP service: it draws, scores and updates, and leaves no file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.trainer.loops import MakeSettings
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from trainer.dry_run import dry_run


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
    assert "h for 7 steps" in said
    assert re.search(r"^arithmetic of an update: \S+ GB \(weights .*, activations ", said, flags=re.MULTILINE)
