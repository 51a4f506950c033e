from __future__ import annotations

from pathlib import Path

import pytest

from embedded.makers.__main__ import PARTS, make


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a toy of each model, trained for three steps on a few images."""
    folder = tmp_path_factory.mktemp("toys")
    for name in PARTS["all"]:
        make(name, folder / "weights", folder / "build", quick=True)
    return folder / "weights"
