"""Starting a run: in this process, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from trainer import run as run_module
from trainer.launch import launch
from trainer.stop import STOP_FILE


def test_without_workers_the_run_is_here(ready: MakeSettings) -> None:  # noqa: F811
    with serve(Judge()) as url:
        settings = ready(REWARDS__URL=url, STEPS="1")
        settings.run_dir.mkdir()
        (settings.run_dir / STOP_FILE).touch()  # left by a launcher that was killed
        assert launch(settings, evaluated=False) == 0
    assert len(lines(settings.run_dir)) == 1


def test_a_run_dir_that_is_a_file_is_refused(ready: MakeSettings, world_dir: Path) -> None:  # noqa: F811
    (world_dir / "run").write_text("a file")
    with pytest.raises(SettingsError, match=r"\[trainer\] run_dir = .*/run: .*give a directory"):
        launch(ready())


def test_a_stop_file_ends_a_run_after_its_step(ready: MakeSettings) -> None:  # noqa: F811
    with serve(Judge(), lambda number: settings.run_dir.joinpath(STOP_FILE).touch()) as url:
        settings = ready(REWARDS__URL=url, STEPS="3")
        assert run_module.run(settings, evaluated=False) == 0
    assert len(lines(settings.run_dir)) == 1
    assert not (settings.run_dir / "policy").exists()


def test_more_workers_than_groups_are_refused(ready: MakeSettings) -> None:  # noqa: F811
    with pytest.raises(
        SettingsError, match=r"3 ranks share the groups of a step, but \[trainer\] prompts_per_step is 2"
    ):
        ready(RANKS__WORKERS="3", PROMPTS_PER_STEP="2")
