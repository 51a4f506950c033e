"""How much each recipe of `benchmarks.dgs` gains in its time, and how long it takes to another's gain. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from scipy import stats

from benchmarks.arms import ARMS, REFERENCE
from benchmarks.measures import PRIMARY
from synod.errors import SettingsError

COMPARED: Final = (REFERENCE, "today")  # the recipes whose gain others are timed against
Result = dict[str, Any]
Points = Sequence[tuple[float, float]]  # (minutes, gain), in order


def summary(arms: Mapping[str, Sequence[Result]]) -> Result:
    """Return the figures of each recipe over its seeds, of each measure; `arms` has the records of each one's runs.

    gain, gain_stderr    mean over seeds of the change in the training time, and its standard error over seeds
    images_stderr        of one run's change, over the held-out images: the start's images are the same for all seeds,
                         so that more seeds do not lower this part of the error
    per_minute           gain by minute of training, with its standard error over seeds
    against              for each of COMPARED: `difference` of the gains, seed by seed; if it gained more than 2 errors
                         also `minutes` to its gain at the end, None if that is not reached, and `speed`, the minutes
                         that the compared recipe itself takes over these. `*_interval`: of 95 %, by Student's t

    Raises SettingsError for runs of other lengths, numbers of prompts or weights at the start.
    """
    grid, prompts = _budget(arms)
    done = {name: [run for run in runs if "failed" not in run] for name, runs in arms.items()}
    found: Result = {"marks": grid, "prompts": prompts, "primary": PRIMARY, "arms": {}}
    for name, runs in done.items():
        measures = [one for one in (runs[0]["heldout"] if runs else {}) if all(one in run["heldout"] for run in runs)]
        found["arms"][name] = {
            "about": ARMS[name].about if name in ARMS else "",
            "seeds": sorted(run["seed"] for run in runs),
            "failed": {str(run["seed"]): run["failed"] for run in arms[name] if "failed" in run},
            "steps": _mean([run["steps"] for run in runs]),
            "minutes": _mean([run["minutes"] for run in runs]),
            "measures": {one: _figures(runs, one) for one in measures},
            "against": {
                other: against(done[other], runs, PRIMARY, grid)
                for other in COMPARED
                if other != name and done.get(other) and PRIMARY in measures
            },
        }
    return found


def _budget(arms: Mapping[str, Sequence[Result]]) -> tuple[list[float], int | None]:
    """Return the marks in minutes and the number of prompts that all runs have, as they have their start."""
    names = ("marks_s", "evaluate.prompts", "weights")
    found = {
        json.dumps([run["facts"][name] for name in names]): f"{name}, seed {run['seed']}"
        for name, runs in arms.items()
        for run in runs
    }
    if len(found) > 1:
        lines = "\n".join(f"  {one}: {facts}" for facts, one in found.items())
        raise SettingsError(
            f"runs of other {', '.join(names)} cannot be compared:\n{lines}\nGive each queue its own --out and --runs"
        )
    marks_s, prompts, _ = json.loads(next(iter(found), "[[], null, null]"))
    return [mark / 60 for mark in marks_s], prompts


def _figures(runs: Sequence[Result], measure: str) -> Result:
    gains = [_gain(run, measure) for run in runs]
    rates = [gain / run["minutes"] for gain, run in zip(gains, runs, strict=True)]
    errors = [error for run in runs if (error := _error(run["heldout"][measure])) is not None]
    return {
        "gain": _mean(gains),
        "gain_stderr": _stderr(gains),
        "images_stderr": math.sqrt(statistics.fmean(e * e for e in errors)) if errors else None,
        "per_minute": _mean(rates),
        "per_minute_stderr": _stderr(rates),
        "n": runs[0]["heldout"][measure]["n"],
    }


def against(reference: Sequence[Result], runs: Sequence[Result], measure: str, grid: Sequence[float]) -> Result:
    """Return how much more `runs` gain than `reference`, their time to its final gain, and how many times faster it is.

    Times are those of mean curves over the seeds that both have, at the marks. Noise makes a curve cross a level too
    early, and does so for the reference as well, whose own time to its final gain is the numerator. `speed_stderr` is
    the jackknife's over seeds. Times are None where the reference gained less than 2 errors.
    """
    first, second = ({run["seed"]: run for run in one} for one in (reference, runs))
    seeds = sorted(first.keys() & second.keys())
    more = [_gain(second[seed], measure) - _gain(first[seed], measure) for seed in seeds]
    found = {"seeds": seeds, **_with_error("difference", _mean(more), _stderr(more), len(seeds))}
    if not seeds or not _gained(reference, measure):
        return {**found, "target": None, "minutes": None, **_with_error("speed", None, None, len(seeds))}

    def curve(runs: Mapping[int, Result], left_out: int | None) -> Points:
        return mean_curve([_points(runs[seed], measure) for seed in seeds if seed != left_out], grid)

    def times(left_out: int | None) -> tuple[float, float | None, float | None]:
        a, b = curve(first, left_out), curve(second, left_out)
        own, other = time_to(a, a[-1][1]), time_to(b, a[-1][1])
        return a[-1][1], other, own / other if own and other else None

    target, minutes, speed = times(None)
    parts = [times(seed)[2] for seed in seeds] if len(seeds) > 1 else []
    error = jackknife([part for part in parts if part is not None]) if speed and None not in parts else None
    return {**found, "target": target, "minutes": minutes, **_with_error("speed", speed, error, len(seeds))}


def _with_error(name: str, value: float | None, error: float | None, seeds: int) -> Result:
    """Return a figure with its standard error over seeds and the interval of 95 % by Student's t."""
    far = None if error is None else float(stats.t.ppf(0.975, seeds - 1)) * error
    interval = None if value is None or far is None else [value - far, value + far]
    return {name: value, f"{name}_stderr": error, f"{name}_interval": interval}


def time_to(points: Points, level: float) -> float | None:
    """Return the first time at which the straight lines between the points reach a level; None if they never do."""
    for (before, low), (after, high) in pairwise(points):
        if low >= level:
            return before
        if high >= level:
            return before + (after - before) * (level - low) / (high - low)
    return points[-1][0] if points and points[-1][1] >= level else None


def mean_curve(curves: Sequence[Points], grid: Sequence[float]) -> list[tuple[float, float]]:
    """Return the mean over runs of their gains at the times of `grid`, from (0, 0) on, between points in a line."""
    rows = [np.interp(grid, [x for x, _ in points], [y for _, y in points]) for points in curves]
    return [(0.0, 0.0), *zip(map(float, grid), map(float, np.mean(rows, axis=0)), strict=True)]


def jackknife(parts: Sequence[float]) -> float | None:
    """Return the standard error of a figure from its values with one seed left out each; None below two."""
    if len(parts) < 2:
        return None
    center = statistics.fmean(parts)
    return math.sqrt((len(parts) - 1) / len(parts) * math.fsum((part - center) ** 2 for part in parts))


def table(result: Result) -> str:
    """Return the primary measure of every recipe as a Markdown table."""
    minutes = result["marks"][-1] if result["marks"] else 0
    lines = [
        f"| recipe, {minutes:g} minutes | seeds | steps | {PRIMARY} | a minute, x 1000 | speed |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        one = arm["measures"].get(PRIMARY, {})
        speeds = [
            f"{_shown(found['speed'], found['speed_stderr'], '.2f')} of {other}{_within(found['speed_interval'])}"
            for other, found in arm["against"].items()
            if found["speed"] is not None
        ]
        gain = _shown(one.get("gain"), one.get("gain_stderr"), "+.3f")
        rate = _shown(one.get("per_minute"), one.get("per_minute_stderr"), "+.2f", 1000)
        steps = "" if arm["steps"] is None else f"{arm['steps']:.0f}"
        lines.append(f"| {name} | {len(arm['seeds'])} | {steps} | {gain} | {rate} | {', '.join(speeds)} |")
    return "\n".join(lines)


def _gained(runs: Sequence[Result], measure: str) -> bool:
    """Return whether the mean gain exceeds 2 standard errors, the larger of that over seeds and over images."""
    found = _figures(runs, measure)
    errors = [found[name] for name in ("gain_stderr", "images_stderr") if found[name] is not None]
    return bool(errors) and found["gain"] > 2 * max(errors)


def _points(run: Result, measure: str) -> list[tuple[float, float]]:
    return [(0.0, 0.0), *((one["minutes"], one["gain"][measure]) for one in run["curve"])]


def _gain(run: Result, measure: str) -> float:
    gain: float = run["heldout"][measure]["difference"]
    return gain


def _error(change: Mapping[str, Any]) -> float | None:
    found = [change[name] for name in ("stderr", "stderr_by_prompt") if change[name] is not None]
    return max(found, default=None)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _stderr(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _within(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


def _shown(value: float | None, error: float | None, form: str, scale: float = 1) -> str:
    if value is None:
        return "not measured"
    return f"{scale * value:{form}}" + ("" if error is None else f" ± {scale * error:{form.lstrip('+')}}")
