"""Find processes by the files that they have open, so that a service leaves no process running."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def users_of(folder: Path) -> list[int]:
    """Return the ids of other processes that have `folder` in their command line or a file in it open."""
    needle = str(folder)
    return [pid for pid in _others() if needle in _command(pid) or any(needle in path for path in _open_files(pid))]


def kill_users_of(folder: Path, patience_s: float = 5.0) -> None:
    """Kill the users of `folder` until none is left, for at most `patience_s`."""
    ends_s = time.monotonic() + patience_s
    while (pids := users_of(folder)) and time.monotonic() < ends_s:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _others() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _open_files(pid: int) -> list[str]:
    paths = []
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                paths.append(os.readlink(link))
    except OSError:  # the process has ended, or belongs to another user
        return []
    return paths
