"""A scorer for child processes that fails in the way that the prompt names."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's exception."""


class AcceleratorError(RuntimeError):
    """Has the name of torch's exception."""


class Faulty:
    """Calls the method named by the prompt's first word, then scores the image's mean."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def score(self, items: Sequence[ScoreItem]) -> Any:
        (Path(self._options["folder"]) / "runs").open("a").write(f"{len(items)}\n")
        if len(items) > self._options.get("most", 99):
            raise OutOfMemoryError("CUDA out of memory")
        found: list[Outcome] = []
        for item in items:
            word, _, rest = (item.prompt or "").partition(" ")
            getattr(self, word)(rest)
            if word == "invalid":
                found.append(ScoreFailure.of(InvalidItem(rest)))
            else:
                detail = {"pid": os.getpid(), "numpy": np.__version__, "python": list(sys.version_info[:2])}
                value = float("nan") if word == "nan" else float(item.pixels().mean()) / 255
                found.append(Score(value, detail))
        return found[: len(found) - self._options.get("short", 0)]

    def fine(self, rest: str) -> None:
        pass

    invalid = nan = fine

    def prints(self, rest: str) -> None:
        print(f"stdout {rest}")
        os.write(1, b"SYN1\x00\x00\x00\x01x\n")
        print(f"stderr {rest}", file=sys.stderr)

    def raises(self, rest: str) -> None:
        raise ValueError(f"cannot read this: {rest}")

    def asserts(self, rest: str) -> None:
        raise AcceleratorError("CUDA error: device-side assert triggered")

    def exits(self, rest: str) -> None:
        print("last words", file=sys.stderr)
        os._exit(int(rest))

    def killed(self, rest: str) -> None:
        os.kill(os.getpid(), getattr(signal, rest))

    def once(self, rest: str) -> None:
        """End the process, but only the first one."""
        mark = Path(self._options["folder"]) / "once"
        if not mark.exists():
            mark.touch()
            self.killed(rest)

    def hangs(self, rest: str) -> None:
        time.sleep(60)

    def garbage(self, rest: str) -> None:
        sent = {"text": b"hello, this is not a frame", "huge": b"SYN1\xff\xff\xff\xff", "map": b"SYN1\0\0\0\1\x80"}
        for fd in range(3, 1024):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    socket.socket(fileno=os.dup(fd)).sendall(sent[rest])
            except OSError:
                continue


def load(name: str, settings: Any) -> Any:
    options = settings.options
    log = Path(options["folder"]) / "loads"
    log.open("a").write(f"{os.getpid()}\n")
    match options.get("load"):
        case "raises":
            raise RuntimeError("no weights in ./nowhere")
        case "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "dies later" if len(log.read_text().split()) > 1:
            os._exit(3)
        case "nothing":
            return object()
    return Faulty(options)
