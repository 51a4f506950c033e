"""The directory of a run: one process holds it, and every rank must see the same one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from trainer import run_dir
from trainer.distributed import Ranks
from trainer.launch import launch
from trainer.run_dir import LAUNCHER_LOCK, LOCK, check_shared, run_lock
from trainer.stop import STOP_FILE

HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "


@pytest.mark.parametrize("name", [LOCK, LAUNCHER_LOCK])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_second_launcher_is_refused(tiny_settings: MakeSettings, workers: str, name: str) -> None:
    """By torchrun or alone (workers 0) and by Ray Train, whichever launcher was first."""
    settings = tiny_settings(RANKS__WORKERS=workers, PROMPTS_PER_STEP="2")
    if (workers, name) == ("0", LAUNCHER_LOCK):
        return  # then the first launcher's rank 0 holds LOCK
    with run_lock(settings.run_dir, name):
        before = (settings.run_dir / name).read_text()
        (settings.run_dir / STOP_FILE).touch()
        held = rf"run_dir = {settings.run_dir}: another training uses it \(process {os.getpid()} on"
        with pytest.raises(SettingsError, match=held):
            launch(settings)
        assert (settings.run_dir / name).read_text() == before
        assert (settings.run_dir / STOP_FILE).exists(), "the first launcher's"


@pytest.mark.slow
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD} time.sleep(99)", str(tmp_path / LOCK)], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        with pytest.raises(SettingsError, match="its process is not known"), run_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with run_lock(tmp_path) as token:
        assert json.loads((tmp_path / LOCK).read_text())["token"] == token


def test_workers_wait_for_the_lock_of_a_killed_rank(tmp_path: Path) -> None:
    with ExitStack() as held:
        held.enter_context(run_lock(tmp_path))
        threading.Timer(0.3, held.close).start()
        with run_lock(tmp_path, patience_s=20.0) as token:
            assert token


def test_one_rank_sees_what_it_wrote(tmp_path: Path) -> None:
    with run_lock(tmp_path) as token:
        check_shared(tmp_path, token, Ranks())


def test_a_lock_file_of_another_run_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "SEEN_WITHIN_S", 0.0)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(SettingsError, match=r"what rank 0 on .* has written there cannot be seen by rank 0 on"):
        check_shared(tmp_path, "a token", Ranks())
