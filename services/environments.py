"""The Python environment that a scorer's settings name (`serving.python`): what it holds, and how a scorer runs in it.

Where it holds the Python, Ray and libraries that a replica needs, the whole replica runs in it, as a Ray runtime
environment (`py_executable`). Otherwise the replica runs in the service's own Python and keeps a child process with
that interpreter (`services.child`). An environment on nodes of its own (`serving.resource`) is not seen from here: the
replica runs in its node's Python, and `python` is always a child process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from services.scorers.custom import CustomSettings
from services.settings_types import ScorerSettings
from synod.errors import SettingsError

PROBE: Final = Path(__file__).with_name("environment_probe.py")
PROBE_S: Final = 60.0
REPLICA_NEEDS: Final = ("ray", "numpy", "PIL", "msgpack", "pydantic", "prometheus_client", "opentelemetry")
CHILD_NEEDS: Final = ("synod", "numpy", "msgpack")
CHILD_PYTHON: Final = (3, 10)


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter: its version, its distributions by normalised name, and where the modules asked for lie."""

    python: str
    version: tuple[int, ...]
    packages: Mapping[str, str]
    modules: Mapping[str, tuple[str, ...]]

    @property
    def obstacle(self) -> str | None:
        """Why a replica cannot run in it, or None."""
        ours, theirs = (".".join(map(str, version[:2])) for version in (sys.version_info, self.version))
        if theirs != ours:
            return f"it has Python {theirs}, the service has {ours}"
        if absent := [module for module in REPLICA_NEEDS if not self.modules[module]]:
            return f"it has no {', '.join(absent)}"
        for name, parts in (("ray", 3), ("numpy", 1)):  # NumPy 1 cannot read the arrays that NumPy 2 pickles
            there, here = self.packages.get(name, "none"), metadata.version(name)
            if there.split(".")[:parts] != here.split(".")[:parts]:
                return f"it has {name} {there}, the service has {here}"
        return None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a scorer runs: `child` says why it needs a child process; None: the whole replica is in the environment."""

    environment: Environment
    child: str | None

    def __str__(self) -> str:
        how = "the replica runs in it" if self.child is None else f"in a child process: {self.child}"
        return f"{self.environment.python}: {how}"


def place(scorer: ScorerSettings) -> Placement | None:
    """Where a scorer with `serving.python` runs; None for one without, and for one on nodes of its own.

    Raises SettingsError for an environment that does not answer or lacks what the scorer needs.
    """
    python = scorer.serving.python
    if python is None or scorer.serving.resource is not None:
        return None
    package = package_of(scorer)
    environment = ask(python, package)
    obstacle = environment.obstacle
    if obstacle is not None and environment.version < CHILD_PYTHON:
        version = ".".join(map(str, environment.version))
        raise SettingsError(f"python '{python}' is Python {version}; a child process needs 3.10 or later")
    needs = () if obstacle is None else (*CHILD_NEEDS, *(() if package else ("pydantic", "PIL")))
    if absent := [module for module in needs if not environment.modules[module]]:
        raise SettingsError(
            f"python '{python}' has no {', '.join(absent)}, which a scorer's child process needs: {python} -m pip "
            f"install {' '.join({'PIL': 'pillow'}.get(one, one) for one in absent)}"
        )
    if package and not environment.modules[package]:
        raise SettingsError(
            f"python '{python}' finds no package '{package}' for load = '{getattr(scorer, 'load', '')}': install it "
            "in that environment, or put its folder on PYTHONPATH, on every node"
        )
    return Placement(environment, obstacle)


def package_of(scorer: ScorerSettings) -> str:
    """The top-level package of a custom scorer's `load`; empty for other kinds."""
    return scorer.load.partition(":")[0].partition(".")[0] if isinstance(scorer, CustomSettings) else ""


@cache
def ask(python: str, package: str = "") -> Environment:
    """What the interpreter holds, with where `package` lies. Raises SettingsError for one that does not answer."""
    modules = dict.fromkeys([*REPLICA_NEEDS, *CHILD_NEEDS, *filter(None, [package])])
    remedy = "give the Python of a virtual environment, such as envs/hpsv3/bin/python"
    try:
        with PROBE.open("rb") as program:
            ended = subprocess.run(
                [python, "-", *modules], stdin=program, capture_output=True, timeout=PROBE_S, check=False
            )
    except subprocess.TimeoutExpired:
        raise SettingsError(f"python '{python}' did not answer within {PROBE_S:g} s; {remedy}") from None
    except OSError as error:
        raise SettingsError(f"python '{python}': {error.strerror}; {remedy}") from None
    try:
        found = json.loads(ended.stdout.splitlines()[-1])  # the environment's own start-up may print too
        places = {name: tuple(place) for name, place in found["modules"].items()}
        return Environment(python, tuple(found["version"]), found["packages"], places)
    except (ValueError, KeyError, TypeError, IndexError):
        told = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        raise SettingsError(
            f"python '{python}' ended with status {ended.returncode} and did not report its version: "
            f"{told[0][:200]}; {remedy}"
        ) from None


def is_own(python: str) -> bool:
    """Whether it is the interpreter of this process."""
    return os.path.abspath(python) == os.path.abspath(sys.executable)
