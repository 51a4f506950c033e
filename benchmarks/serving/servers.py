"""Start servers as processes, wait for their first answer, pin them, and end them with all their descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving import usage

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 300.0
STOP_LIMIT_S = 40.0
POLL_S = 0.25
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class BenchError(RuntimeError):
    """A server or client fails; the message includes its output."""


@dataclass(frozen=True)
class Launch:
    """A command line and additional environment variables."""

    command: Sequence[str]
    environ: Mapping[str, str]


@dataclass
class Running:
    """Running servers. `start_s`: time to the first answer, on all cores; memory (MiB): at the first answer."""

    pids: list[int] = field(default_factory=list)
    start_s: float = 0.0
    rss_mib: float = 0.0
    pss_mib: float = 0.0
    processes: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the facts for the result file."""
        names = ("start_s", "rss_mib", "pss_mib", "processes")
        return {name: value for name, value in vars(self).items() if name in names}


@contextmanager
def serving(
    launches: Sequence[Launch], first_answer: Callable[[], object], log: Path, cores: Sequence[int] = ()
) -> Iterator[Running]:
    """Start servers, wait until `first_answer` no longer raises OSError, and pin them to `cores`. End them on exit.

    Raises BenchError, with the end of the log, if a server ends early or START_LIMIT_S passes.
    """
    began_s = time.monotonic()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("wb") as out:
            for launch in launches:
                environ = {**os.environ, "PYTHONPATH": str(ROOT), **ONE_THREAD, **launch.environ}
                processes.append(
                    subprocess.Popen(
                        launch.command, cwd=ROOT, env=environ, stdout=out, stderr=out, start_new_session=True
                    )
                )
        _wait(processes, first_answer, began_s + START_LIMIT_S, log)
        running = Running([process.pid for process in processes], round(time.monotonic() - began_s, 2))
        pids = usage.tree(running.pids)
        running.processes = len(pids)
        running.rss_mib, running.pss_mib = usage.memory_mib(pids)
        if cores:
            usage.pin(pids, cores)
        yield running
    finally:
        _stop(processes)


def post(url: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> bytes:
    """Send a request and return the answer's body. Raises OSError (such as HTTPError) for any status but 200."""
    request = urllib.request.Request(url, body, dict(headers), method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: bytes = answer.read()
    return found


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], first_answer: Callable[[], object], ends_s: float, log: Path
) -> None:
    while True:
        try:
            first_answer()
        except OSError as error:
            ended = [process.args for process in processes if process.poll() is not None]
            if ended or time.monotonic() > ends_s:
                what = f"ended: {ended}" if ended else f"did not answer within {START_LIMIT_S:.0f} s (last: {error})"
                raise BenchError(f"{what}\n{log}:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(POLL_S)
        else:
            return


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate the servers, then kill those that still run, with all their descendants."""
    started = {pid: usage.start_ticks(pid) for pid in usage.tree(process.pid for process in processes)}
    for process in processes:
        process.terminate()
    ends_s = time.monotonic() + STOP_LIMIT_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, ends_s - time.monotonic()))
    for pid, ticks in started.items():
        if ticks is not None and usage.start_ticks(pid) == ticks:  # else another process has this id now
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait()
