"""A lock, which ends with its process, shows which service runs from a directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.cluster.run_dir import Record, RunDir
from synod.errors import SettingsError

ROOT = Path(__file__).parents[4]
HOLDER = """
import os, sys, time
from pathlib import Path
from services.cluster.run_dir import Record, RunDir
run_dir = RunDir(Path(sys.argv[1]))
run_dir.claim()
run_dir.write(Record(os.getpid(), "http://x", "service.toml", "/tmp/synod-none"))
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


@pytest.mark.slow
def test_a_directory_allows_one_service(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.running() is None
    holder = hold(tmp_path)
    try:
        record = run_dir.running()
        assert record is not None
        assert record.pid == holder.pid
        with pytest.raises(SettingsError, match="another service"):
            run_dir.claim()
    finally:
        end(holder)
    assert run_dir.running() is None
    stale = run_dir.claim()
    assert stale is not None  # the record of the killed service, which says what to clean up
    assert stale.pid == holder.pid
    run_dir.release()
    assert run_dir.read() is None


@pytest.mark.slow
def test_terminate_stops_the_service_once(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    run_dir = RunDir(tmp_path)
    assert run_dir.terminate(patience_s=20.0) is True
    assert holder.wait(20) == -signal.SIGTERM
    holder.communicate()
    assert run_dir.terminate(patience_s=1.0) is False


def test_an_invalid_record_is_ignored(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for text in ("", "{", '{"pid": 1}', "[]"):
        (tmp_path / "service.json").write_text(text)
        assert run_dir.read() is None
    run_dir.write(Record(1, "u", "c", "t", 2.5))
    assert run_dir.read() == Record(1, "u", "c", "t", 2.5)
