"""Compare Synod with other servers in one run on this machine: `make bench-serving [ARGS="--quick"]`.

Four arms: `ensemble` (the five embedded rewards, compared with Flask, LitServe, BentoML and mosec), `device` (a scorer
that only waits: the share of its limit that is reached), `overhead` (a scorer that does nothing: the cost of serving,
compared with plain Ray Serve and mosec) and `scaling` (1, 2, 4, 8 replicas). All servers run the same scorer code from
the same model directories, with one thread each, pinned to the server cores after their first answer. The client runs
on its own core.

The results are written to --out after every measurement. To resume a stopped run, start it with the same options. The
figures in `summary`, at the end of the file, are described in `benchmarks/serving/summary.py`. The first run creates a
separate Python environment for the other servers under --work, which takes a minute. Run nothing else on the machine.

  --quick   3 repeats of 1 s or more, one load in `ensemble`: about 20 minutes on two idle cores
  (default) 5 repeats of 2 s or more, 1 and 8 clients in `ensemble`: about an hour
  --full    1, 8, 32, 64 clients x 1, 8, 32 images in `ensemble` and `overhead`: hours
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack

from benchmarks.machine import command
from benchmarks.serving import environment, usage
from benchmarks.serving.arms import DIRECT, REWARDS, Bench, Group, Point
from benchmarks.serving.load import Load
from benchmarks.serving.results import Results
from benchmarks.serving.servers import ONE_THREAD, ROOT, BenchError, Running, post, serving
from benchmarks.serving.summary import reduce
from synod.codec import JSON, MSGPACK, PROTOBUF
from synod.contracts import Score
from synod.errors import SynodError

# (repeats, minimum seconds of a repeat, maximum seconds of a repeat even if a client still has no answer)
REPEATS = {"quick": (3, 1.0, 8.0), "default": (5, 2.0, 20.0), "full": (5, 2.0, 20.0)}
Scores = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C, SIGTERM also ends the servers
    amount = "quick" if options.quick else "full" if options.full else "default"
    repeats, seconds, longest_s = REPEATS[amount]
    run_options = {"amount": amount, "repeats": options.repeats or repeats, "seconds": options.seconds or seconds}
    run_options |= {
        "longest_s": longest_s,
        "server_cores": options.server_cores,
        "client_cores": options.client_cores,
        "pinned": options.pin,
    }
    if options.fresh:
        options.out.unlink(missing_ok=True)
    try:
        results = Results(options.out, command(), run_options)
        shutil.rmtree(options.work / "bodies", ignore_errors=True)
        bench = Bench(options.work.resolve(), str(environment.make(options.work.resolve() / "peers")), amount)
        for group in bench.groups():
            if options.only in group.name:
                run(group, bench, results, run_options)
    except BenchError as error:
        print(f"bench-serving: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results.summary, indent=1))
    return 0


def run(group: Group, bench: Bench, results: Results, run_options: Mapping[str, Any]) -> None:
    """Measure the points of a group that have no result yet. If its servers fail, report that and skip the group."""
    points = [point for point in group.points if point.name not in results]
    if not points:
        print(f"kept    {group.name}", flush=True)
        return
    print(f"start   {group.name}", flush=True)
    bench.write_bodies(group)
    pinned, folder = run_options["pinned"], bench.folder
    log = folder / "logs" / f"{group.name.replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with serving(
            group.launches, lambda: _first_requests(group), log, run_options["server_cores"] if pinned else ()
        ) as running:
            results.keep_server(group.name, running.facts())
            if pinned and group.scorers_alone:
                scorers = usage.scorer_replicas(running.pids)
                usage.pin(set(usage.tree(running.pids)) - set(scorers), run_options["client_cores"])
            for point in points:
                record = measure(point, running, run_options)
                if "scores" in record:
                    record["largest_difference"] = largest_difference([*results.scores.values(), record["scores"]])
                results.keep(point.name, record)
                print(
                    f"  {record['images_per_s']:9.1f} images/s  p99 {record['p99_ms']:8.1f} ms  {point.name}",
                    flush=True,
                )
    except (BenchError, SynodError) as error:
        print(f"FAILED  {group.name}: {error}", file=sys.stderr, flush=True)


def measure(point: Point, running: Running, run_options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one point. Raises BenchError if the client fails or an answer does not contain all scores."""
    clients, images = point.labels["clients"], point.labels["images"]
    direct = point.calls[0].url == DIRECT
    cores = run_options["server_cores" if direct else "client_cores"] if run_options["pinned"] else ()
    with TemporaryDirectory() as folder:
        load = Load(
            point.calls,
            clients,
            images,
            run_options["repeats"],
            run_options["seconds"],
            run_options["longest_s"],
            folder,
            running.pids,
            cores,
        )
        raw = _client(load, Path(folder), "direct" if direct else "load")
        answers = [path.read_bytes() for path in sorted(Path(folder).glob("*.answer"))]
    if len(raw["repeats"]) < load.repeats or len(answers) < len(point.calls):
        raise BenchError(f"{point.name}: {len(raw['repeats'])} of {load.repeats} repeats; {raw['first_failure']}")
    scores: Scores = {}
    for answer in answers:
        scores |= scores_of(answer, point.wire)
    if not scores or any(len(values) != images for values in scores.values()):
        raise BenchError(f"{point.name}: { {name: len(v) for name, v in scores.items()} } values for {images} images")
    kept = {"scores": scores} if point.labels["arm"] == "ensemble" else {}
    return {**point.labels, **reduce(raw), "first_failure": raw["first_failure"], **kept}


def _client(load: Load, folder: Path, module: str = "load") -> dict[str, Any]:
    """Run the client in its own process and return its measurements. If it fails, that counts as a failed request."""
    path = folder / "load.json"
    path.write_text(json.dumps(asdict(load)))
    line = [sys.executable, "-m", f"benchmarks.serving.{module}", str(path)]
    direct = {**ONE_THREAD, "BENCH_SCORERS": ",".join(REWARDS)} if module == "direct" else {}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **direct}
    client = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if client.returncode:
        return {"repeats": [], "first_failure": client.stderr}
    measured: dict[str, Any] = json.loads(client.stdout)
    return measured


def scores_of(answer: bytes, wire: str) -> Scores:
    """Return the values of each scorer, one per item. Raises BenchError if an item has no score."""
    if wire.startswith("synod"):
        codec = {"synod json": JSON, "synod msgpack": MSGPACK, "synod grpc": PROTOBUF}[wire]
        results = codec.decode_response(answer).results
        failed = [one for result in results for one in result.scores.values() if not isinstance(one, Score)]
        if failed:
            raise BenchError(f"{len(failed)} scores failed, the first with {failed[0]}")
        return {name: [float(r.scores[name].value) for r in results] for name in results[0].scores}  # type: ignore[union-attr]
    if wire == "bentoml":
        values: list[dict[str, float]] = json.loads(answer)
        return {name: [one[name] for one in values] for name in values[0]}
    tree = msgpack.unpackb(answer) if wire == "msgpack" else json.loads(answer)
    found: Scores = tree["scores"]
    return found


def largest_difference(answers: Sequence[Scores]) -> float:
    """Return the largest difference between any two servers' values of one item; about 0 if they compute the same."""
    first, *others = answers
    return max(
        (
            abs(a - b)
            for other in others
            for name in other
            for a, b in zip(first.get(name, ()), other[name], strict=False)
        ),
        default=0.0,
    )


def _first_requests(group: Group) -> None:
    group.prepare()
    for call in {call.url: call for point in group.points for call in point.calls}.values():
        if call.url.startswith("http"):
            post(call.url, Path(call.bodies[0]).read_bytes(), call.headers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-serving ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="a short run, for a first impression")
    amount.add_argument("--full", action="store_true", help="all loads of the grid")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="measure only groups whose name contains TEXT, such as 'ensemble mosec'",
    )
    parser.add_argument("--fresh", action="store_true", help="discard the results in --out")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="let servers and client run on any core")
    parser.add_argument("--server-cores", type=_cores, default=[0], metavar="N,..", help="cores of the servers (0)")
    parser.add_argument("--client-cores", type=_cores, default=[1], metavar="N,..", help="cores of the client (1)")
    parser.add_argument("--repeats", type=int, help="repeats of a measurement; the results are medians and spreads")
    parser.add_argument("--seconds", type=float, help="minimum length of a repeat, and of the warm-up before the first")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/serving.json", help="the result (%(default)s)"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs/bench-serving", help="environment, bodies, logs")
    return parser


def _cores(text: str) -> list[int]:
    return [int(core) for core in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
