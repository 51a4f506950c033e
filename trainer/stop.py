"""Stop a training between two steps, by a signal or by a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tqdm import tqdm

STOP_FILE: Final = "stop"  # in the run's directory; `trainer.launch` writes it for workers, which get no signals


class Stop:
    """Whether to stop: set by a signal, or by STOP_FILE in the run's directory."""

    def __init__(self, run_dir: Path) -> None:
        self._signal, self._file = threading.Event(), run_dir / STOP_FILE

    def is_set(self) -> bool:
        """Return whether to stop after the current step."""
        return self._signal.is_set() or self._file.exists()

    def set(self) -> None:
        """Stop after the current step."""
        self._signal.set()


@contextmanager
def stop_on_signal(run_dir: Path, unit: str = "step") -> Iterator[Stop]:
    """Yield what SIGTERM and the first Ctrl-C set; a second Ctrl-C raises KeyboardInterrupt.

    `unit` is what the caller finishes before it stops, for the message.

    Outside the main thread Python cannot install signal handlers; then only the file stops the training.
    """
    stop = Stop(run_dir)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        tqdm.write(f"stopping after this {unit} and its checkpoint")

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
