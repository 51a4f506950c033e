"""Run UnifyBench and UnifyBench++ to the end, again, and with 10 kills; all files must be equal, byte for byte.

Every column of both suites with its controls, on the six concepts of --data: about 15 CPU minutes for the first run of
both, and as much again for the one with kills.

    make up CONFIG=deploy/configs/unify.toml
    python -m embedded.judge &
    python -m benchmarks.personal_suites deploy/configs/embedded.toml --concepts runs/*/concept

Without concepts of `synod personalize`, `python -m embedded.world.unify DATA "<ada>,<ben>,<bo>,<rex>,<pip>,<zip>"`
writes concepts that the embedded policy knows as words; give --data DATA then. A run is killed (SIGKILL) when its files
have grown by a random share of what the first run wrote. CPU time is the evaluations' own, without the service's.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import command, commit, machine

SUITES: Final = ("unify", "unify_pp")
KILLS, SEED = 10, 0
ROOT: Final = Path(__file__).resolve().parents[1]
COMPARED: Final = ("*.jsonl", "*.png", "table.md", "evaluation.json")


def evaluation(options: argparse.Namespace, suite: str, out: Path) -> list[str]:
    concepts = ["--concepts", *map(str, options.concepts)] if options.concepts else []
    data = ["--suite", suite, "--data", str(options.data), "--out", str(out), "--url", options.url]
    size = [
        "--images",
        str(options.images),
        "--batch",
        "8",
        *(["--limit", str(options.limit)] if options.limit else []),
    ]
    return [sys.executable, "-m", "trainer", "evaluate", str(options.policy), *concepts, *data, *size]


def files(out: Path) -> dict[str, bytes]:
    """Return the compared files of an evaluation by name."""
    return {str(p.relative_to(out)): p.read_bytes() for name in COMPARED for p in sorted(out.rglob(name))}


def progress(out: Path) -> int:
    """Return the bytes of all rows and replies."""
    return sum(path.stat().st_size for path in out.rglob("*.jsonl") if path.name != "plan.jsonl")


def killed(line: list[str], out: Path, whole: int, rng: random.Random) -> int:
    """Run an evaluation that is killed KILLS times, and then to its end; return how many kills took place."""
    done = 0
    for mark in sorted(rng.uniform(0.0, 1.0) * whole for _ in range(KILLS)):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and progress(out) < mark:
            time.sleep(0.02)
        done += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return done


def measure(options: argparse.Namespace, suite: str) -> dict[str, Any]:
    first, second = options.work / suite, options.work / f"{suite}-killed"
    began, line = time.monotonic(), evaluation(options, suite, first)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s, whole = time.monotonic() - began, files(first)
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    again = files(first)
    kills = killed(evaluation(options, suite, second), second, progress(first), random.Random(SEED))
    table = json.loads((first / "table.json").read_text())
    return {
        "cpu_minutes": round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60, 2),
        "wall_minutes": round(wall_s / 60, 2),
        "files": len(whole),
        "rows": whole["rows.jsonl"].count(b"\n"),
        "rerun_has_the_same_bytes": again == whole,
        "kills": kills,
        "killed_run_has_the_same_bytes": files(second) == whole,
        "measures_without_a_control": [
            one["measure"] for one in table["table"] if not {"none", "other"} <= set(one["arms"])
        ],
        "table": table["table"],
        "notes": table["notes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personal_suites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=Path, help="POLICY of `synod evaluate`")
    parser.add_argument("--concepts", type=Path, nargs="+", default=[], help="concepts of `synod personalize`")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "embedded/data/unify", help="the concepts to ask about (%(default)s)"
    )
    parser.add_argument("--images", type=int, default=4, help="images of each prompt (4)")
    parser.add_argument("--limit", type=int, help="questions or prompts of a column and concept (all)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the service (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs/personal_suites", help="where the evaluations go (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/personal_suites.json", help="the result (%(default)s)"
    )
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    found = {suite: measure(options, suite) for suite in SUITES}
    document = {"command": command(), "commit": commit(), "machine": machine(), "suites": found}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({suite: {k: v for k, v in one.items() if k != "table"} for suite, one in found.items()}, indent=1))


if __name__ == "__main__":
    main()
