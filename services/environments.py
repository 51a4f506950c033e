"""The Python environment of a scorer (`serving.python`): its contents, and how the scorer runs in it.

If it has the Python, Ray and libraries that a replica needs, the whole replica runs in it, as a Ray runtime environment
(`py_executable`). Otherwise the replica runs in the service's Python, with a child process of that interpreter
(`services.child`). An environment on dedicated nodes (`serving.resource`) cannot be probed from here: its replica runs
in the node's Python, and `python` is always that of a child process.
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
PROBE_TIMEOUT_S: Final = 60.0
REPLICA_NEEDS: Final = ("ray", "numpy", "PIL", "msgpack", "pydantic", "prometheus_client", "opentelemetry")
CHILD_NEEDS: Final = ("synod", "numpy", "msgpack")
CHILD_PYTHON: Final = (3, 10)


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter: its version, distributions by normalised name, and the locations of probed modules."""

    python: str
    version: tuple[int, ...]
    packages: Mapping[str, str]
    modules: Mapping[str, tuple[str, ...]]

    @property
    def replica_obstacle(self) -> str | None:
        """Return why a replica cannot run in it, or None."""
        if self.version[:2] != sys.version_info[:2]:
            own, service = (".".join(map(str, version[:2])) for version in (self.version, sys.version_info))
            return f"it has Python {own}, the service has {service}"
        if absent := [module for module in REPLICA_NEEDS if not self.modules[module]]:
            return f"it lacks {', '.join(absent)}"
        for name, parts in (("ray", 3), ("numpy", 1)):  # NumPy 1 cannot read the arrays that NumPy 2 pickles
            there, here = self.packages.get(name, "none"), metadata.version(name)
            if there.split(".")[:parts] != here.split(".")[:parts]:
                return f"it has {name} {there}, the service has {here}"
        return None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a scorer runs: in a child process for `child_reason`, or (None) in a replica of the environment."""

    environment: Environment
    child_reason: str | None

    def __str__(self) -> str:
        how = "the replica runs in it" if self.child_reason is None else f"in a child process: {self.child_reason}"
        return f"{self.environment.python}: {how}"


def placement_of(scorer: ScorerSettings) -> Placement | None:
    """Return where a scorer with `serving.python` runs; None without it, and on dedicated nodes.

    Raises SettingsError for an environment that cannot be probed or lacks what the scorer needs.
    """
    python = scorer.serving.python
    if python is None or scorer.serving.resource is not None:
        return None
    package = package_of(scorer)
    environment = probe(python, package)
    replica_obstacle = environment.replica_obstacle
    if replica_obstacle is not None and environment.version < CHILD_PYTHON:
        version = ".".join(map(str, environment.version))
        raise SettingsError(
            f"python '{python}' is Python {version}, but a child process needs 3.10 or later; use a newer environment"
        )
    needs = () if replica_obstacle is None else (*CHILD_NEEDS, *(() if package else ("pydantic", "PIL")))
    if absent := [module for module in needs if not environment.modules[module]]:
        raise SettingsError(
            f"python '{python}' lacks {', '.join(absent)}, which a scorer's child process needs: {python} -m pip "
            f"install {' '.join({'PIL': 'pillow'}.get(one, one) for one in absent)}"
        )
    if package and not environment.modules[package]:
        raise SettingsError(
            f"python '{python}' does not find the package '{package}' of load = '{getattr(scorer, 'load', '')}': "
            "install it in that environment, or put its folder on PYTHONPATH, on every node"
        )
    return Placement(environment, replica_obstacle)


def package_of(scorer: ScorerSettings) -> str:
    """Return the top-level package of a custom scorer's `load`; empty for other kinds."""
    return scorer.load.partition(":")[0].partition(".")[0] if isinstance(scorer, CustomSettings) else ""


@cache
def probe(python: str, package: str = "") -> Environment:
    """Probe an interpreter's packages and the location of `package`. Raises SettingsError if that fails."""
    modules = dict.fromkeys([*REPLICA_NEEDS, *CHILD_NEEDS, *filter(None, [package])])
    remedy = "give the Python of a virtual environment, such as envs/hpsv3/bin/python"
    try:
        with PROBE.open("rb") as program:
            ended = subprocess.run(
                [python, "-", *modules], stdin=program, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
            )
    except subprocess.TimeoutExpired:
        raise SettingsError(f"python '{python}' did not answer within {PROBE_TIMEOUT_S:g} s; {remedy}") from None
    except OSError as error:
        raise SettingsError(f"python '{python}': {error.strerror}; {remedy}") from None
    try:
        found = json.loads(ended.stdout.splitlines()[-1])  # the environment may print at start-up
        places = {name: tuple(place) for name, place in found["modules"].items()}
        return Environment(python, tuple(found["version"]), found["packages"], places)
    except (ValueError, KeyError, TypeError, IndexError):
        output = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        raise SettingsError(
            f"python '{python}' ended with status {ended.returncode} and did not report its version: "
            f"{output[0][:200]}; {remedy}"
        ) from None


def is_current_interpreter(python: str) -> bool:
    """Return whether `python` is the interpreter of this process."""
    return os.path.abspath(python) == os.path.abspath(sys.executable)
