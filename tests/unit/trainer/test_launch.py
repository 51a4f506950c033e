"""Starting a run: in this process, or not at all."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from trainer import run as run_module
from trainer.launch import _in_thread, _stop_by_file, launch
from trainer.run import _check_patience
from trainer.run_dir import run_lock
from trainer.stop import STOP_FILE


def test_without_workers_the_run_is_here(ready: MakeSettings) -> None:  # noqa: F811
    with serve(Judge()) as url:
        settings = ready(REWARDS__URL=url, STEPS="1")
        settings.run_dir.mkdir()
        (settings.run_dir / STOP_FILE).touch()  # left by a launcher that was killed
        assert launch(settings, evaluated=False) == 0
    assert len(lines(settings.run_dir)) == 1


def test_signals_stop_workers_and_a_second_ctrl_c_ends(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    for first in (signal.SIGTERM, signal.SIGINT):
        with run_lock(tmp_path), _stop_by_file(tmp_path):  # as rank 0 holds it
            signal.raise_signal(first)
            assert (tmp_path / STOP_FILE).exists()
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert not (tmp_path / STOP_FILE).exists()
        assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_launcher_whose_workers_do_not_train(tmp_path: Path, number: signal.Signals) -> None:
    with run_lock(tmp_path):
        pass  # of an earlier run
    with _stop_by_file(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert not (tmp_path / STOP_FILE).exists()


def test_ray_train_runs_outside_the_main_thread() -> None:
    assert _in_thread(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        _in_thread(lambda: 1 / 0)


def test_patience_beyond_that_of_the_ranks_is_refused(ready: MakeSettings) -> None:  # noqa: F811
    _check_patience(settings := ready(REWARDS__PATIENCE_S="43200"), 1)
    with pytest.raises(SettingsError, match="patience_s = 43200: a rank waits for the others for 43200 s"):
        _check_patience(settings, 2)


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
