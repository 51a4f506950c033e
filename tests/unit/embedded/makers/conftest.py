from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from embedded.makers.__main__ import PARTS, make


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a folder with a toy of each model, trained for three steps on a few images; all workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "toys"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            for name in PARTS["all"]:
                make(name, folder / "weights", folder / "build", quick=True)
            (folder / "ready").touch()
    return folder / "weights"
