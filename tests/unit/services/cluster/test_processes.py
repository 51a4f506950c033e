"""Processes that use a service's folder are found and killed; other processes are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.cluster.processes import kill_users_of, users_of

pytestmark = pytest.mark.slow


def sleeper(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import time; time.sleep(60)", *arguments]
    return subprocess.Popen(command, **options)  # type: ignore[call-overload,no-any-return]


def test_users_are_found_by_command_line_and_open_files(tmp_path: Path) -> None:
    folder = tmp_path / "synod-x"
    folder.mkdir()
    stranger = sleeper()
    named = sleeper(f"--temp={folder}/session")
    with (folder / "log").open("wb") as log:
        writer = sleeper(stdout=log)
    try:
        assert set(users_of(folder)) == {named.pid, writer.pid}
        kill_users_of(folder)
        assert (named.wait(10), writer.wait(10)) == (-9, -9)
        assert stranger.poll() is None
        assert users_of(folder) == []
    finally:
        for process in (stranger, named, writer):
            process.kill()
            process.wait()
