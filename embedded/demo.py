"""`make demo`: start the service, score the shipped samples, train the small policy, stop.

The training takes --steps steps of Sync-GRPO and is evaluated on --prompts held-out prompts before and after. Writes
`summary.json` and `report.html` into --out. Ctrl-C stops everything that the demo started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from embedded.report import write_report
from embedded.samples import PHOTOGRAPHS, SAMPLES, Sample, load_samples
from services.cluster.local import check_port, free_port
from services.settings import load
from synod.client import SynodClient
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreRequest
from synod.errors import SettingsError, Unavailable
from trainer.evaluate.compare import Paired, paired
from trainer.evaluate.heldout import AFTER, BEFORE, load_evaluation
from trainer.report.metrics import read, steps_saved
from trainer.report.page import fragment

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy/configs/embedded.toml"
PARTS = {"tier": "answers (TIER)", "image part": "images", "official": "GenEval's official verdict"}  # that may change
BATCH = 8  # samples per request: several requests, so that the service batches across them
STOP_GRACE_S = 20.0
console = Console()


@dataclass(frozen=True)
class Scored:
    """A sample with its result."""

    sample: Sample
    result: ItemResult


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, help="HTTP port (default: that of the settings, or a free one if it is busy)"
    )
    parser.add_argument("--steps", type=int, default=25, help="training steps (25)")
    parser.add_argument("--prompts", type=int, default=300, help="held-out prompts before and after training (300)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs/demo", help="directory of summary and report (runs/demo)"
    )
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the `finally` blocks, as Ctrl-C does
    try:
        run(args.out, pick_port(args.port), steps=args.steps, prompts=args.prompts)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; the service is stopped[/]")
        return 130
    except DemoError as error:
        console.print(f"[red]demo: {error}[/]")
        return 1
    return 0


class DemoError(RuntimeError):
    """The demo cannot continue; the message gives the reason and the remedy."""


def run(out: Path, port: int, *, steps: int, prompts: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    begin = time.perf_counter()
    samples, photographs = load_samples(SAMPLES), load_samples(PHOTOGRAPHS)
    with service(port, out / "service", seconds) as client:
        with timed(seconds, "score"):
            scored = score(client, [*samples, *photographs])
        with timed(seconds, "train"):
            train(out / "train", port, steps, prompts)
    seconds["total"] = time.perf_counter() - begin
    drawn, photographed = scored[: len(samples)], scored[len(samples) :]
    summary = {**summarise(drawn, photographed, seconds), **trained(out / "train")}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(out / "report.html", [(s.sample, s.result) for s in scored], summary, fragment(out / "train"))
    show(scored, summary)
    console.print(f"wrote {display(out / 'summary.json')} and {display(out / 'report.html')}")


def train(run_dir: Path, port: int, steps: int, prompts: int) -> None:
    """Run `synod train` with the service at `port`, with its progress bars. Raises DemoError."""
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "trainer", str(CONFIG), "--run-dir", str(run_dir), "--steps", str(steps)]
    command += ["--url", f"http://127.0.0.1:{port}"]
    environ = {**os.environ, "SYNOD__TRAINER__EVALUATE__PROMPTS": str(prompts)}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:  # interrupted: nobody will resume this run, so kill it
            process.kill()
            process.wait()
    if code:
        raise DemoError(f"the training ended with exit status {code}; its messages are above")


def trained(run_dir: Path) -> dict[str, Any]:
    """Summarise the training: held-out reward before and after, paired changes, steps, and what screening saved."""
    found = paired(*(load_evaluation(run_dir / name) for name in (BEFORE, AFTER)))
    reward, records = found["reward"], read(run_dir)
    rates = [r["pass_rate"] for r in records if r["pass_rate"] is not None]
    thresholds = [r["threshold"] for r in records if r["threshold"] is not None]
    return {
        "reward_before": asdict(reward.before),
        "reward_after": asdict(reward.after),
        "reward_change": _change(reward),
        "changes": {name: _change(found[name]) for name in PARTS if name in found},
        "steps": len(records),
        "dgs": {
            "pass_rate": statistics.fmean(rates) if rates else None,
            "threshold": thresholds[-1] if thresholds else None,
            "previews": sum(r["previews"] for r in records),
            "denoising_steps_saved_ratio": steps_saved(records),
        },
    }


def _change(found: Paired) -> dict[str, float | None]:
    return {"mean": found.difference, "stderr": found.stderr, "n": found.n}


def display(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - begin


@contextmanager
def service(port: int, run_dir: Path, seconds: dict[str, float]) -> Iterator[SynodClient]:
    """Run the service as a process that is ready to score, and stop it on exit.

    It runs in its own process session, so that the terminal's Ctrl-C reaches only the demo, which then stops it.
    """
    log_path = run_dir / "service.log"
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "services", "up", str(CONFIG), "--port", str(port), "--run-dir", str(run_dir)]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        with timed(seconds, "start"):
            client = wait_ready(process, port, log_path)
        yield client
    finally:
        with timed(seconds, "stop"), console.status("stopping the service"):
            stop(process)


def wait_ready(process: subprocess.Popen[bytes], port: int, log_path: Path) -> SynodClient:
    client = SynodClient(f"http://127.0.0.1:{port}")
    limit_s = load(CONFIG).cluster.ready_timeout_s
    deadline = time.monotonic() + limit_s
    with console.status(f"starting the service on http://127.0.0.1:{port} (five models, about half a minute)"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                log = log_path.read_text()[-2000:]
                raise DemoError(f"the service ended with exit status {process.returncode}. Its log:\n{log}")
            try:
                client.wait_ready(timeout_s=1.0)
            except Unavailable:
                continue
            return client
    raise DemoError(f"the service was not ready after {limit_s:.0f} s; see {display(log_path)}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process; kill it after STOP_GRACE_S."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def pick_port(requested: int | None) -> int:
    """Return the requested port, else that of the settings, else a free one. Raises DemoError."""
    wanted = requested or load(CONFIG).server.port
    try:
        check_port("127.0.0.1", wanted)
    except SettingsError:
        if requested:
            message = f"port {requested} is busy; give another --port, or omit it to use a free one"
            raise DemoError(message) from None
    else:
        return wanted
    port = free_port()
    console.print(f"port {wanted} is busy; the demo uses port {port}")
    return port


def score(client: SynodClient, samples: Sequence[Sample]) -> list[Scored]:
    """Score the samples in requests of BATCH, grouped by their scorers; results keep the samples' order."""
    groups: dict[tuple[tuple[str, ...], str | None], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.scorers, sample.ensemble), []).append(sample)
    requests = [
        (chunk, ScoreRequest(tuple(s.item for s in chunk), scorers=scorers, ensemble=ensemble))
        for (scorers, ensemble), members in groups.items()
        for chunk in (members[i : i + BATCH] for i in range(0, len(members), BATCH))
    ]
    results: dict[str, ItemResult] = {}
    for chunk, request in track(requests, "scoring", console=console, transient=True):
        response = client.score(request)
        results |= {s.name: result for s, result in zip(chunk, response.results, strict=True)}
    return [Scored(s, results[s.name]) for s in samples]


def means(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean of each scorer's values, without failures."""
    values: dict[str, list[float]] = {}
    for entry in scored:
        for name, outcome in entry.result.scores.items():
            if isinstance(outcome, Score):
                values.setdefault(name.lower(), []).append(outcome.value)
    return {name: round(statistics.fmean(found), 4) for name, found in sorted(values.items())}


def summarise(drawn: Sequence[Scored], photographs: Sequence[Scored], seconds: dict[str, float]) -> dict[str, Any]:
    """Return the scoring part of `summary.json`: means over the drawn samples and over the photographs."""
    scored = [*drawn, *photographs]
    outcomes = [outcome for entry in scored for outcome in entry.result.scores.values()]
    return {
        "scorers": means(drawn),
        "photographs": means(photographs),
        "images_scored": sum(any(isinstance(o, Score) for o in s.result.scores.values()) for s in scored),
        "score_failures": sum(isinstance(outcome, ScoreFailure) for outcome in outcomes),
        "seconds": {phase: round(spent, 2) for phase, spent in seconds.items()},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("synod", "ray", "torch", "transformers", "open_clip_torch")},
    }


def cell(outcome: Score | ScoreFailure | None) -> str:
    if outcome is None:
        return "[dim]·[/]"
    return f"{outcome.value:.3f}" if isinstance(outcome, Score) else f"[red]{outcome.code}[/]"


def estimate(found: Mapping[str, Any], form: str = ".3f") -> str:
    """Return a mean with its standard error, which one prompt alone does not have."""
    if found["mean"] is None:
        return "not measured"
    return f"{found['mean']:{form}}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.3f}")


def show(scored: Sequence[Scored], summary: dict[str, Any]) -> None:
    names = sorted({name for s in scored for name in s.result.scores})
    table = Table("sample", "prompt", *names, "reward", title="scores of the sample images")
    for s in scored:
        label = f"{s.sample.name} [yellow](deliberately wrong)[/]" if s.sample.note else s.sample.name
        cells = [cell(s.result.scores.get(name)) for name in names]
        table.add_row(label, s.sample.item.prompt or "", *cells, cell(s.result.reward))
    console.print(table)
    drawn, photographs = (
        ", ".join(f"{name} {mean:.3f}" for name, mean in summary[kind].items()) for kind in ("scorers", "photographs")
    )
    console.print(
        f"{summary['images_scored']} images, {summary['score_failures']} failures; "
        f"mean {drawn}; of the photographs {photographs}"
    )
    rewards = [estimate(summary[f"reward_{side}"]) for side in ("before", "after")]
    change, saved = summary["reward_change"], summary["dgs"]["denoising_steps_saved_ratio"]
    console.print(
        f"{summary['steps']} training steps: held-out reward {rewards[0]} before, {rewards[1]} after, "
        f"{estimate(change, '+.3f')} prompt by prompt ({change['n']} prompts)"
        + ("" if saved is None else f"; screening saved {100 * saved:.0f} % of the denoising steps")
    )
    if summary["changes"]:
        parts = (f"{PARTS[name]} {estimate(one, '+.3f')}" for name, one in summary["changes"].items())
        console.print(f"by part: {', '.join(parts)}")
    console.print("seconds: " + ", ".join(f"{phase} {spent:.1f}" for phase, spent in summary["seconds"].items()))


if __name__ == "__main__":
    sys.exit(main())
