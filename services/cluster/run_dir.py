"""RunDir: the directory of a running service, with a lock that its process holds and a record of its address."""

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
    """The record that `up` writes for `status` and `down`. `ready_s` is the start-up time, None until ready."""

    pid: int
    url: str
    config: str
    temp_dir: str
    ready_s: float | None = None


class RunDir:
    """A directory with service.json (the record), service.lock, service.log (if detached), logs/ and metrics/."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        self.log = self.path / "service.log"
        self._record = self.path / "service.json"
        self._lock_path = self.path / "service.lock"
        self._lock: TextIO | None = None

    def claim(self) -> Record | None:
        """Lock the directory. Return the record that a service left which ended without cleaning up, or None.

        Raises SettingsError if another service runs here.
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
        """Replace the record atomically."""
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(record)) + "\n")
        temporary.replace(self._record)

    def read(self) -> Record | None:
        """Return the record, or None if there is none."""
        try:
            return Record(**json.loads(self._record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def release(self) -> None:
        """Remove the record and unlock the directory."""
        self._record.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def running(self) -> Record | None:
        """Return the record of the service that runs here now, or None."""
        with self._lock_path.open("a") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self.read()
        return None

    def terminate(self, patience_s: float) -> bool:
        """Stop the service: SIGTERM, and SIGKILL after `patience_s`. Return False if none runs."""
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
