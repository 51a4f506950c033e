"""Shared fixtures, Ray's environment (Ray reads it at import), and the rule of the marker `slow`."""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from services.cluster.local import environment
from tests.tiny_models import TinyModels

ROOT: Final = Path(__file__).parents[1]
SLOW_FOLDERS: Final = tuple(ROOT / "tests" / name for name in ("browser", "chart", "deploy", "integration"))

os.environ.update(environment())
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on the tiny models, more threads cost more than they save
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # set by `nohup make test &`, and inherited by every child
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `slow` the tests that need a service, a browser, a tool or FaceNet's 94 MB of weights."""
    for item in items:
        facenet = "facenet" in (item.name + " ".join(getattr(item, "fixturenames", ())))
        if facenet or any(item.path.is_relative_to(folder) for folder in SLOW_FOLDERS):
            item.add_marker("slow")


_started: Final[list[str]] = []  # the commands of the processes that the running test started


def _record_starts(owner: Any, method: str) -> None:
    original = getattr(owner, method)

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        command = str(args or kwargs or self)[:200]
        if "ldconfig" not in command:  # `ctypes` runs it when a library is imported
            _started.append(command)
        return original(self, *args, **kwargs)

    setattr(owner, method, recorded)


_record_starts(subprocess.Popen, "__init__")
_record_starts(multiprocessing.process.BaseProcess, "start")


def pytest_runtest_logstart() -> None:
    _started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that starts a process without the marker `slow`."""
    report: Any = yield
    if _started and report.passed and item.get_closest_marker("slow") is None:
        report.outcome = "failed"
        report.longrepr = f"it started {_started[0]}: mark a test that starts a process `slow`"
    return report


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    pytest.importorskip("torch")
    return TinyModels(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture
def make_images() -> Callable[..., list[Any]]:
    """`make_images(n, seed=0, size=(64, 64))`: n smooth random uint8 images [H W 3]."""

    def make(count: int, seed: int = 0, size: tuple[int, int] = (64, 64)) -> list[Any]:
        from PIL import Image

        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        return [np.array(Image.fromarray(c).resize((size[1], size[0]), Image.Resampling.BICUBIC)) for c in coarse]

    return make


PHOTOGRAPHS = {  # name -> (function of skimage.data, height, width); all sizes differ and none is square
    "astronaut": ("astronaut", 200, 160),
    "cat": ("cat", 120, 180),
    "coffee": ("coffee", 128, 192),
    "rocket": ("rocket", 64, 144),
    "motorcycle": ("stereo_motorcycle", 112, 166),
    "galaxies": ("hubble_deep_field", 156, 72),
    "retina": ("retina", 90, 100),
    "tissue": ("immunohistochemistry", 101, 77),
}


@pytest.fixture(scope="session")
def photographs() -> dict[str, Any]:
    """Photographs by name, uint8 [H W 3], cropped and scaled down from scikit-image's.

    Read-only, like a request's decoded images. The astronaut's face, the only one, is at about (x, y) = (68, 46).
    """
    from PIL import Image, ImageOps
    from skimage import data

    made = {}
    for name, (function, height, width) in PHOTOGRAPHS.items():
        found = getattr(data, function)()
        image = Image.fromarray(found[0] if isinstance(found, tuple) else found)
        made[name] = np.array(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
        made[name].setflags(write=False)
    return made
