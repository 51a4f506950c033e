"""The result file: written after every measurement, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.serving.servers import BenchError
from benchmarks.serving.summary import summarise


class Results:
    """Measurements by name. Raises BenchError for a file of a run with other `options`, which must not be mixed."""

    def __init__(self, path: Path, command: str, options: Mapping[str, Any]) -> None:
        self._path = path
        began = {"command": command, "machine": machine(), "options": dict(options), "servers": {}, "measurements": {}}
        self._tree: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else began
        kept = self._tree["options"]
        if kept != dict(options):
            raise BenchError(
                f"{path} is of a run with {kept}, this one has {dict(options)}: give --fresh or another --out"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._tree["measurements"]

    def tell_server(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what a group of servers took to start, and of memory."""
        self._tree["servers"][name] = dict(facts)

    def keep(self, name: str, measurement: Mapping[str, Any]) -> None:
        """Add a measurement and write the file with its summary, whole or not at all."""
        self._tree["measurements"][name] = dict(measurement)
        found = list(self._tree["measurements"].values())
        tree = {**{key: value for key, value in self._tree.items() if key != "summary"}, "summary": summarise(found)}
        fresh = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(tree, indent=1) + "\n")
        fresh.replace(self._path)

    @property
    def summary(self) -> dict[str, Any]:
        return summarise(list(self._tree["measurements"].values()))

    @property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        """What every measurement of the ensemble answered to set 0, by its name."""
        return {name: one["scores"] for name, one in self._tree["measurements"].items() if "scores" in one}
