"""Runs every fault and writes what was counted; fails when a promise was not kept."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import benchmarks.faults
from benchmarks.faults import cases
from benchmarks.faults.plane import ROOT, Running, running
from benchmarks.faults.soak import soak
from benchmarks.machine import machine


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, how much of it the full run does, and how much a quick one."""

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
    "replica_killed": Case(cases.replica_killed, 5120, 256),
    "gateway_killed": Case(cases.gateway_killed, 5120, 256),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=benchmarks.faults.__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts, and a soak of seconds")
    parser.add_argument("--only", nargs="*", choices=[*CASES, "soak"], help="these faults only")
    parser.add_argument("--soak-minutes", type=float, help="20; 0.1 with --quick")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    options = parser.parse_args(arguments)
    minutes = options.soak_minutes or (0.1 if options.quick else 20.0)
    result: dict[str, Any] = {"command": " ".join(["python -m benchmarks.faults", *sys.argv[1:]]), "machine": machine()}
    with TemporaryDirectory(prefix="synod-faults-") as folder, running(Path(folder)) as plane:
        result["cases"] = dict(_run(plane, options.only, options.quick, minutes))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return report(result["cases"])


def _run(plane: Running, only: Sequence[str] | None, quick: bool, minutes: float) -> Iterator[tuple[str, Any]]:
    chosen = {name: (case.inject, case.quick if quick else case.full) for name, case in CASES.items()}
    chosen["soak"] = (soak, 60 * minutes)
    for name, (inject, amount) in chosen.items():
        if not only or name in only:
            began_s = time.monotonic()
            found = inject(plane, amount)
            print(name, json.dumps(found), flush=True)
            yield name, {"does": inject.__doc__, **found, "took_s": round(time.monotonic() - began_s, 1)}


def report(found: dict[str, Any]) -> int:
    """Says which promises were not kept; 1 if any."""
    promises = [(name, said, kept) for name, one in found.items() for said, kept in one["held"].items()]
    broken = [f"{name}: not so: {said}" for name, said, kept in promises if not kept]
    print("\n".join(broken or [f"{len(found)} cases, {len(promises)} promises kept"]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
