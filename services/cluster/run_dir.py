"""A service's run directory: who runs from it, told by a lock that dies with its holder, and where to reach it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from synod.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Record:
    """What `up` writes for `status` and `down`. `ready_s`: start-up time once ready, else None."""

    pid: int
    url: str
    config: str
    temp_dir: str
    ready_s: float | None = None


class RunDir:
    """Holds service.json (the record), service.lock, service.log (of a detached service), logs/ and metrics/."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        self.log = self.path / "service.log"
        self._record = self.path / "service.json"
        self._lock_path = self.path / "service.lock"
        self._lock: TextIO | None = None

    def claim(self) -> Record | None:
        """Become the one service here; the record of a predecessor that died without cleaning up, or None.

        Raises SettingsError when another service lives here.
        """
        lock = self._lock_path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SettingsError(
                f"another service runs from {self.path}: stop it (python -m services down --run-dir {self.path}) "
                "or choose another --run-dir"
            ) from None
        self._lock = lock
        return self.read()

    def write(self, record: Record) -> None:
        """Replace the record at once, so that a reader never sees half of it."""
        fresh = self._record.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record)) + "\n")
        fresh.replace(self._record)

    def read(self) -> Record | None:
        """The record, or None where there is none."""
        try:
            return Record(**json.loads(self._record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def release(self) -> None:
        """Forget the record and let the next one in."""
        self._record.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def running(self) -> Record | None:
        """The record of the service that lives here now, or None."""
        with self._lock_path.open("a") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self.read()
        return None

    def terminate(self, patience_s: float) -> bool:
        """SIGTERM the service here and wait for its end, SIGKILL it past `patience_s`. False when none ran."""
        record = self.running()
        if record is None:
            return False
        os.kill(record.pid, signal.SIGTERM)
        ends_s = time.monotonic() + patience_s
        while self.running() is not None and time.monotonic() < ends_s:
            time.sleep(0.1)
        if self.running() is not None:
            os.kill(record.pid, signal.SIGKILL)
        return True
