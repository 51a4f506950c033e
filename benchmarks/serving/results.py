"""The result file. It is written after every measurement, so that a stopped run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.serving.servers import BenchError
from benchmarks.serving.summary import summarise


class Results:
    """Measurements by name. Raises BenchError if the file is of a run with other `options`."""

    def __init__(self, path: Path, command: str, options: Mapping[str, Any]) -> None:
        self._path = path
        empty = {"command": command, "machine": machine(), "options": dict(options), "servers": {}, "measurements": {}}
        self._tree: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else empty
        kept = self._tree["options"]
        if kept != dict(options):
            raise BenchError(
                f"{path} is of a run with {kept}, but this run has {dict(options)}: give --fresh or another --out"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._tree["measurements"]

    def keep_server(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep the start-up time and memory of a group of servers."""
        self._tree["servers"][name] = dict(facts)

    def keep(self, name: str, measurement: Mapping[str, Any]) -> None:
        """Add a measurement and replace the file, with a new summary, atomically."""
        self._tree["measurements"][name] = dict(measurement)
        found = list(self._tree["measurements"].values())
        tree = {**{key: value for key, value in self._tree.items() if key != "summary"}, "summary": summarise(found)}
        temporary = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(tree, indent=1) + "\n")
        temporary.replace(self._path)

    @property
    def summary(self) -> dict[str, Any]:
        return summarise(list(self._tree["measurements"].values()))

    @property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        """The scores of set 0 in each measurement of the ensemble, by its name."""
        return {name: one["scores"] for name, one in self._tree["measurements"].items() if "scores" in one}
