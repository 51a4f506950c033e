"""The machine and the command that a results file records."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the CPU, cores, memory, and versions of Python and the main packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = {name: version(name) for name in ("torch", "transformers", "ray")}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
    } | packages


def command() -> str:
    """Return the running command line as a user would type it."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.stem == "__main__" else program.stem
    return " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])


def commit() -> str:
    """Return the commit of the working tree, with "-dirty" if files that git tracks differ from it."""
    line = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    return subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
