"""Create a temporary environment with the other servers' packages; all else comes from the project's environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "peers.txt"


def make(folder: Path) -> Path:
    """Create the environment in `folder`, unless it exists with the same requirements, and return its Python.

    This takes a minute. A .pth file makes the project's packages available, after the environment's own. pip installs
    exactly peers.txt and never changes the project's environment. Raises CalledProcessError if pip fails.
    """
    python, stamp = folder / "bin/python", folder / "peers.txt"
    if stamp.is_file() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    stamp.write_text(REQUIREMENTS.read_text())
    return python
