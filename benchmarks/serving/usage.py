"""Read the CPU time and memory of process trees from /proc, and pin processes to cores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(roots: Iterable[int]) -> list[int]:
    """List the running processes among `roots` and their descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(int(path.name))):
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, waiting = [], list(roots)
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        if _stat(pid):
            found.append(pid)
    return found


def start_ticks(pid: int) -> int | None:
    """Return when the process started, in ticks since boot, or None if it has ended. Identifies a reused id."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def cpu_s(pids: Iterable[int]) -> float:
    """Sum the user and system seconds of the processes and their ended children."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) / TICKS_S


def memory_mib(pids: Iterable[int]) -> tuple[float, float]:
    """Return (RSS, PSS) in MiB. PSS counts shared memory once, RSS once per process."""
    rss = pss = 0.0
    for pid in pids:
        with suppress(OSError):
            rss += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10
    return round(rss, 1), round(pss, 1)


def pin(pids: Iterable[int], cores: Sequence[int]) -> None:
    """Restrict all threads of the processes, and those they start later, to `cores`."""
    for pid in pids:
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)


def scorer_replicas(roots: Iterable[int]) -> list[int]:
    """Return the processes among `roots` and their descendants that run scorers of a Synod service."""
    return [
        pid for pid in tree(roots) if (title := _title(pid)).startswith("ray::ServeReplica") and "Gateway" not in title
    ]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] for an ended process or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields
