"""The other servers' packages, in a throwaway environment that looks into the project's own for everything else."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "peers.txt"


def make(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, made (a minute) unless it is there with these requirements.

    The project's packages are found through a .pth file, after the environment's own, and pip changes nothing there:
    peers.txt names all there is to install.
    Raises CalledProcessError when pip cannot install.
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
