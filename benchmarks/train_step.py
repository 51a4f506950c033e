"""Measure the time of each phase of a training step, and the memory of each group size.

    make up && synod train deploy/configs/embedded.toml
    python -m benchmarks.train_step runs/train

Memory is the peak resident size of a separate process that trains two steps with that group size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import command, machine
from trainer.report.metrics import read

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "deploy/configs/embedded.toml"
GROUPS = (3, 9, 18, 36)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the directory of a run")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the service (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/train_step_baseline.json",
        help="the result (%(default)s)",
    )
    options = parser.parse_args(arguments)
    records = read(options.run)
    result = {"command": command(), "machine": machine(), "steps": len(records), "seconds": seconds(records)}
    result["reward_wait_share"] = _share(records, "reward_wait")
    result["max_rss_gib_by_group"] = {str(group): _memory(group, options.url) for group in GROUPS}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def seconds(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and median seconds per step of every phase, and its share of the time."""
    names = sorted({name for record in records for name in record["seconds"]})
    found = {}
    for name in names:
        spent = [record["seconds"].get(name, 0.0) for record in records]
        found[name] = {
            "mean": round(statistics.fmean(spent), 3),
            "median": round(statistics.median(spent), 3),
            "share": _share(records, name),
        }
    return found


def _share(records: Sequence[dict[str, Any]], name: str) -> float:
    total = sum(record["seconds"]["total"] for record in records)
    return float(round(sum(record["seconds"].get(name, 0.0) for record in records) / total, 4))


def _memory(group: int, url: str) -> float:
    with TemporaryDirectory() as folder:
        overrides = {"SCREEN__GROUP_SIZE": group}
        environ = {**os.environ, **{f"SYNOD__TRAINER__{key}": str(value) for key, value in overrides.items()}}
        line = [sys.executable, "-m", "trainer", str(CONFIG), "--run-dir", folder, "--steps", "2", "--url", url]
        subprocess.run([*line, "--no-evaluation"], cwd=ROOT, env=environ, check=True)
        return max(float(record["max_rss_gib"]) for record in read(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
