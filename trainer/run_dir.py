"""The directory of a run: one launcher holds it, and every rank sees the same one."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from synod.errors import SettingsError
from trainer.distributed import Ranks

LOCK: Final = ".lock"  # of rank 0, which writes the directory; the system releases it when the process ends
LAUNCHER_LOCK: Final = ".launcher.lock"  # of the process that starts the workers of Ray Train
RESTART_S: Final = 30.0  # in which the system ends the killed rank 0 of workers that start again
SEEN_WITHIN_S: Final = 30.0  # a network filesystem may show a new file on another machine only after so long


@contextmanager
def run_lock(run_dir: Path, name: str = LOCK, *, patience_s: float = 0.0) -> Iterator[str]:
    """Create the run's directory, hold it alone, and yield a token that the lock file holds.

    Raises SettingsError if the directory cannot be written, or another process holds it for `patience_s` more. A
    process that was killed holds nothing.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / name).open("a+")
    except OSError as error:
        raise SettingsError(f"[trainer] run_dir = {run_dir}: {error.strerror}; give a directory to write to") from None
    with file:
        if not _locks(file, patience_s):
            raise SettingsError(
                f"[trainer] run_dir = {run_dir}: another training uses it ({_holder(run_dir / name)}); give this one a "
                "directory of its own, or stop the other"
            )
        token = uuid.uuid4().hex
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "token": token}))
        file.flush()
        try:
            yield token
        finally:
            file.truncate(0)


def is_locked(run_dir: Path) -> bool:
    """Return whether a process holds the run's directory, as rank 0 does from before it loads a policy to the end."""
    try:
        file = (run_dir / LOCK).open("r+")
    except OSError:
        return False
    with file:
        return not _locks(file, 0.0)


def check_shared(run_dir: Path, token: str | None, ranks: Ranks) -> None:
    """Raise SettingsError on every rank unless all see the lock file with the token that rank 0 has written."""
    expected = ranks.gather_all(token)[0]
    found = ranks.gather_all([socket.gethostname(), _sees(run_dir / LOCK, expected)])
    blind = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(found) if not sees]
    if blind:
        raise SettingsError(
            f"[trainer] run_dir = {run_dir}: what rank 0 on {found[0][0]} has written there cannot be seen by "
            f"{', '.join(blind)}; give a directory that every machine mounts (NFS, or a ReadWriteMany claim)"
        )


def _locks(file: IO[str], patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
        else:
            return True


def _sees(file: Path, token: str) -> bool:
    until = time.monotonic() + SEEN_WITHIN_S
    while _content(file).get("token") != token:
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _holder(file: Path) -> str:
    content = _content(file)
    return f"process {content['process']} on {content['host']}" if content else "its process is not known"


def _content(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
