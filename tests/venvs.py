"""Virtual environments that hold another package than ours and, after it, all that ours holds."""

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
    """The interpreter of a new environment with `packages` (`name==version`, no dependencies), and with `rest` our
    other packages after them. Skips the test where pip reaches no registry."""
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
