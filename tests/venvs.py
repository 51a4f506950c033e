"""Virtual environments with other versions of some packages, on top of our own packages."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join((str(ROOT / "tests/packages"), str(ROOT)))  # `own_scorer` and the project


def make(folder: Path, *packages: str, rest: bool = True) -> str:
    """Create an environment with `packages` and return its interpreter.

    A package is `name==version`, installed without dependencies. With `rest`, our other packages follow on its path.
    Skips the test if pip cannot install them.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    if packages:
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--no-deps"]
        done = subprocess.run(
            [*pip, "-q", "--only-binary=:all:", *packages], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"pip cannot install {', '.join(packages)}: {done.stderr.strip()[-200:]}")
    if rest:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "zz_rest.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n")
    return python
