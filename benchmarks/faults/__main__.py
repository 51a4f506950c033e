"""Run every fault case and write its counts; exit with 1 if a check failed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import benchmarks.faults
from benchmarks.faults import cases
from benchmarks.faults.fuzz import fuzz
from benchmarks.faults.service import ROOT, Running, running
from benchmarks.faults.soak import soak
from benchmarks.machine import machine


@dataclass(frozen=True, slots=True)
class Case:
    """A fault and its amount in full and quick runs."""

    inject: Callable[[Running, Any], dict[str, Any]]
    full: float
    quick: float


CASES: Final = {
    "corrupt_image": Case(cases.corrupt_image, 3200, 64),
    "nan": Case(cases.nan, 3200, 200),
    "timeout_then_retry": Case(cases.timeout_then_retry, 20, 3),
    "client_gone": Case(cases.client_gone, 5, 1),
    "overload": Case(cases.overload, 30.0, 6.0),
    "wrong_channel_order": Case(cases.wrong_channel_order, 2, 1),
    "replica_killed": Case(cases.replica_killed, 5120, 1024),
    "gateway_killed": Case(cases.gateway_killed, 5120, 1024),
}


FUZZ: Final = (20_000, 500)  # cases, full and quick
SOAK: Final = (20.0, 0.1)  # minutes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=benchmarks.faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small counts, and a soak of seconds")
    parser.add_argument(
        "--only", nargs="+", choices=["fuzz", *CASES, "soak"], help="run these only; keep the file's other cases"
    )
    parser.add_argument("--soak-minutes", type=float, help="20; 0.1 with --quick")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/faults.json", help="the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    minutes = SOAK[options.quick] if options.soak_minutes is None else options.soak_minutes
    on_service: dict[str, Callable[[Running], dict[str, Any]]] = {
        name: partial(_inject, case, options.quick) for name, case in CASES.items()
    }
    on_service["soak"] = partial(soak, seconds=60 * minutes)
    chosen = options.only or ["fuzz", *on_service]
    record = _Record(options.out, keeps=bool(options.only))
    if "fuzz" in chosen:
        record.add("fuzz", partial(fuzz, FUZZ[options.quick]))
    if set(chosen) & set(on_service):
        with TemporaryDirectory(prefix="synod-faults-") as folder, running(Path(folder)) as service:
            for name, inject in on_service.items():
                if name in chosen:
                    record.add(name, partial(inject, service))
    return report(record.cases)


def _inject(case: Case, quick: bool, service: Running) -> dict[str, Any]:
    does = {"does": case.inject.__doc__}
    return does | case.inject(service, case.quick if quick else case.full)


class _Record:
    """The results file, rewritten after every case. `keeps` preserves the file's other cases."""

    def __init__(self, path: Path, *, keeps: bool) -> None:
        self.cases: dict[str, dict[str, Any]] = {}
        self._path = path
        self._others: dict[str, Any] = json.loads(path.read_text())["cases"] if keeps and path.exists() else {}

    def add(self, name: str, count: Callable[[], dict[str, Any]]) -> None:
        """Run one case and write the file."""
        began_s = time.monotonic()
        command = " ".join(["python -m benchmarks.faults", *sys.argv[1:]])
        found = {"command": command, "took_s": 0.0, **count()}
        found["took_s"] = round(time.monotonic() - began_s, 1)
        self.cases[name] = found
        print(name, json.dumps(found), flush=True)
        text = json.dumps({"machine": machine(), "cases": self._others | self.cases}, indent=1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(text + "\n")


def report(found: dict[str, Any]) -> int:
    """Print the checks that failed; return 1 if any did."""
    checks = [(name, check, passed) for name, one in found.items() for check, passed in one["held"].items()]
    broken = [f"{name}: failed: {check}" for name, check, passed in checks if not passed]
    print("\n".join(broken or [f"{len(found)} cases, {len(checks)} checks passed"]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
