"""Servers as processes of their own: started, waited for, pinned, and ended with all that they started."""

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
    """What is to be measured does not work; the message says what it said."""


@dataclass(frozen=True)
class Launch:
    """A command line and what its environment has besides ours."""

    command: Sequence[str]
    environ: Mapping[str, str]


@dataclass
class Running:
    """Servers that answer. `start_s`: until the first answer, on all cores; memory (MiB) is that of then."""

    pids: list[int] = field(default_factory=list)
    start_s: float = 0.0
    rss_mib: float = 0.0
    pss_mib: float = 0.0
    processes: int = 0

    def facts(self) -> dict[str, Any]:
        """What a result file says of them."""
        kept = ("start_s", "rss_mib", "pss_mib", "processes")
        return {name: value for name, value in vars(self).items() if name in kept}


@contextmanager
def serving(
    launches: Sequence[Launch], first_answer: Callable[[], object], log: Path, cores: Sequence[int] = ()
) -> Iterator[Running]:
    """The servers, once `first_answer` no longer raises OSError; pinned to `cores` from then on.

    Raises BenchError, with the end of the log, when one ends early or START_LIMIT_S passes.
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
    """The answer's body. Raises OSError (HTTPError among them) for any status but 200."""
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
                what = f"ended: {ended}" if ended else f"gave no answer in {START_LIMIT_S:.0f} s (last: {error})"
                raise BenchError(f"{what}\n{log}:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(POLL_S)
        else:
            return


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask, then insist; what a server leaves behind is ended too."""
    born = {pid: usage.born(pid) for pid in usage.tree(process.pid for process in processes)}
    for process in processes:
        process.terminate()
    ends_s = time.monotonic() + STOP_LIMIT_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, ends_s - time.monotonic()))
    for pid, since in born.items():
        if since is not None and usage.born(pid) == since:  # a number may be another's by now
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait()
