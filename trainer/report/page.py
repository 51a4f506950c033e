"""One self-contained HTML page about a run, finished or not: held-out prompts, curves, time, images."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import jinja2

from synod.errors import SettingsError
from trainer.algorithms.auto import group_work, screen_name
from trainer.evaluate.compare import Evaluation, Paired, hacking, paired, paired_heldout, summary
from trainer.evaluate.heldout import evaluations, image_files, load_evaluation, step_of
from trainer.images import write_whole
from trainer.report.metrics import METRICS, SAMPLES, read, show, steps_saved

Record = Mapping[str, Any]
Getter = Callable[[Record], float | None]

TEMPLATE: Final = "report.html.j2"
MACROS: Final = "macros.html.j2"
WINDOW: Final = 10  # steps of the running mean
CHARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "Surrogate: threshold": {"threshold": "threshold"},
    "Pass rate of previews": {"pass rate": "pass_rate"},
    "Previews and kept images in a step": {"previews": "previews", "kept": "kept"},
    "Denoising steps saved by screening (share)": {"saved": "denoising_steps_saved_ratio"},
    "Loss": {"text": "loss_text", "image": "loss_image"},
    "KL to the reference": {"text": "kl_text", "image": "kl_image"},
    "Clipped decisions (share)": {"text": "clip_fraction_text", "image": "clip_fraction_image"},
    "Largest ratio": {"text": "ratio_max_text", "image": "ratio_max_image"},
    "Cosine between the gradients of two groups": {"text": "gradient_cosine_text", "image": "gradient_cosine_image"},
    "Gradient norm": {"before clipping": "grad_norm"},
    "Spread within a group": {
        "std of reward": "reward_std",
        "mean |advantage|, text": "advantage_abs_text",
        "of images": "advantage_abs_image",
    },
    "Missing rewards, skipped and flat groups": {
        "masked": "masked",
        "skipped": "skipped",
        "flat": "flat",
        "replaced": "replaced",
    },
}
AUDIT: Final = {  # columns: the name of a figure, and its format
    "groups": ("groups", "{:.0f}"),
    "rejected and finished": ("audited", "{:.0f}"),
    "rank correlation": ("spearman", "{:.2f}"),
    "correlation": ("pearson", "{:.2f}"),
    "rejected above the kept median": ("false_rejections", "{:.0%}"),
    "denoising steps saved": ("denoising_steps_saved_ratio", "{:.0%}"),
    "signal of a group": ("signal", "{:.2f}"),
    "signal per second": ("signal_per_second", "{:.2f}"),
}
FORESIGHT: Final = (
    *("", "screen", "in use", "groups measured", "rank correlation", "correlation", "rejected extremes"),
    *("denoising steps saved", "signal of a group", "signal per second"),
)
PATHWAYS: Final = {"visual": "visual", "textual": "textual", "asked": "asked first", "none": "no reasoning"}
LABELS: Final = {
    "instruct": "right answers, visual instruct",
    "attribute": "right answers, textual attribute",
    "asked": "right answers",
    "correct": "GenEval prompts drawn exactly as asked",
    "official": "GenEval prompts right by GenEval's own rules",
    "image part": "reward without the terms of text scorers",
}


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html and return its path.

    Raises SettingsError when `run_dir` is not a run's directory or holds broken files.
    """
    if not any((run_dir / name).is_file() for name in ("settings.json", METRICS)):
        problem = "has neither settings.json nor metrics.jsonl" if run_dir.is_dir() else "is not a directory"
        raise SettingsError(f"{run_dir} {problem}; give the [trainer] run_dir of a training")
    path = run_dir / "report.html"
    write_whole(path, template(TEMPLATE).render(view=view(run_dir)).encode())
    return path


def fragment(run_dir: Path) -> tuple[str, str]:
    """Return (CSS rules, HTML without head and body) of the report, to embed in another page."""
    shown = view(run_dir)
    macros: Any = template(MACROS).module
    module: Any = template(TEMPLATE).make_module({"view": shown})
    return str(macros.style()), str(module.body(shown))


def view(run_dir: Path) -> dict[str, Any]:
    """Return everything that the page shows, as plain values; a part without data is empty or None."""
    records = read(run_dir)
    return {
        "name": run_dir.resolve().name,
        "steps": len(records),
        "window": WINDOW,
        "tiles": tiles(records),
        "charts": charts(records),
        "audit": audit(records),
        "audit_columns": list(AUDIT),
        "foresight": foresight(records),
        "foresight_columns": FORESIGHT,
        "phases": phases(records),
        "heldout": heldout(run_dir),
        "groups": last_groups(run_dir),
    }


def tiles(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return (label, figure) pairs: rewards at both ends, then sums or means over the run."""

    def mean(path: str, part: slice = slice(None)) -> float | None:
        return summary(map(at(path), records[part])).mean

    def total(path: str) -> float | None:
        values = [value for value in map(at(path), records) if value is not None]
        return math.fsum(values) if values else None

    window = max(1, min(WINDOW, len(records) // 2))
    found = [
        (f"reward, first {window} steps", mean("reward_mean", slice(window)), "{:.3f}"),
        (f"reward, last {window} steps", mean("reward_mean", slice(-window, None)), "{:.3f}"),
        ("pass rate", mean("pass_rate"), "{:.1%}"),
        ("previews per step", mean("previews"), "{:.1f}"),
        ("denoising steps saved", steps_saved(records), "{:.0%}"),
        ("groups topped up at the cap", total("capped"), "{:.0f}"),
        ("rewards missing", total("masked"), "{:.0f}"),
        ("groups skipped", total("skipped"), "{:.0f}"),
        ("seconds per step", mean("seconds.total"), "{:.1f}"),
        ("waiting for the slowest rank", mean("ranks.wait_share"), "{:.0%}"),
        (
            "peak host memory (rank 0)",
            max(filter(None, map(at("max_rss_gib"), records)), default=None),
            "{:,.2f} GiB",
        ),
    ]
    return [(label, form.format(value)) for label, value, form in found if value is not None]


def charts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the charts that have a measured value, rewards first."""
    components = sorted({name for record in records for name in record.get("components") or ()})
    pathways = {path for record in records for path in record.get("pathways") or ()}
    reward: dict[str, Getter] = {"all": at("reward_mean")}
    if len(pathways) > 1:
        reward |= {label: _reward_on(name) for name, label in PATHWAYS.items() if name in pathways}
    named = {"Reward": reward, "Components": {name: at(f"components.{name}") for name in components}}
    named |= {title: {label: at(path) for label, path in lines.items()} for title, lines in CHARTS.items()}
    named |= {"KL of images to the reference, by sampling step": _kl_by_step(records)} | _screen_charts(records)
    found = [chart(title, records, lines) for title, lines in named.items()]
    return [one for one in found if one["lines"]]


def _kl_by_step(records: Sequence[Record]) -> dict[str, Getter]:
    """Return the mean KL of four sampling steps from the first to the last; a run without a KL term has none."""
    total = max((len(record.get("kl_image_by_step") or ()) for record in records), default=0)
    chosen = sorted({i * (total - 1) // 3 for i in range(4)}) if total else []
    return {f"step {i + 1} of {total}": at(f"kl_image_by_step.{i}") for i in chosen}


def _screen_charts(records: Sequence[Record]) -> dict[str, dict[str, Getter]]:
    """Return where the screens of "auto" were, and the gain of each, by pathway; {} without "auto"."""
    if not records or "foresight" not in records[-1]:
        return {}
    last = records[-1]
    found = {
        "Denoising step of the screen in use (none: no screen)": {
            PATHWAYS.get(pathway, pathway): at(f"screens.{pathway}") for pathway in last["screens"]
        }
    }
    for pathway, foretold in last["foresight"].items():
        steps = sorted(map(int, foretold))
        found[f"Signal per second of the screens: {PATHWAYS.get(pathway, pathway)}"] = {
            screen_name(step, steps[-1]): at(f"signal_per_second.{pathway}.{step}.value") for step in steps
        }
    return found


def audit(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return (pathway, the figures of AUDIT) up to the last step; [] without an audit of the screen."""
    if not records or "audit" not in records[-1]:
        return []
    last = records[-1]
    found = [
        {**figures, "signal_per_second": last["signal_per_second"].get(pathway)}
        for pathway, figures in last["audit"].items()
    ]
    shown = [[_audited(figures, *column) for column in AUDIT.values()] for figures in found]
    return [(PATHWAYS.get(pathway, pathway), row) for pathway, row in zip(last["audit"], shown, strict=True)]


def foresight(records: Sequence[Record]) -> list[list[str]]:
    """Return a row of FORESIGHT for each pathway and screen up to the last step, and for no screen; [] without "auto".

    A screen in use that was not measured yet has a row, too.
    """
    if not records or "foresight" not in records[-1]:
        return []
    last, rows = records[-1], list[list[str]]()
    for pathway, chosen in last["screens"].items():
        steps = {int(step): figures for step, figures in last["foresight"][pathway].items()}
        gains, total = last["signal_per_second"][pathway], max(steps, default=None)
        measured = max((figures["measured"] for figures in steps.values()), default=0)
        for step in (None, *sorted({*steps, chosen} - {None})):
            gain = {"value": 1.0} if step is None else gains.get(str(step)) or {}
            figures = {"signal": 1.0} if step is None else steps.get(step, {})
            shown = {**figures, "gain": gain.get("value"), "gain_error": gain.get("error")}
            if figures.get("pearson_error") is None:  # without a correlation a signal of 1 is assumed, not measured
                shown |= {"signal_error": None, "gain_error": None}
            cells = [_audited(shown, name, "{:.2f}") for name in ("spearman", "pearson", "signal", "gain")]
            cells[2:2] = [_audited(shown, "false_rejections", "{:.0%}"), _saved(step, total, _draws(last, total))]
            screen = "no screen" if step is None else screen_name(step, total)
            in_use = "yes" if step == chosen else "no"
            rows.append([PATHWAYS.get(pathway, pathway), screen, in_use, str(measured), *cells])
    return rows


def _draws(record: Record, total: int | None) -> int:
    """Return how many images a rollout has, of `total` denoising steps each; 1 if the record does not say."""
    previews, unscreened = at("previews")(record), at("denoising_steps_unscreened")(record)
    return round(unscreened / (previews * total)) if previews and total and unscreened is not None else 1


def _saved(step: int | None, total: int | None, draws: int) -> str:
    """Return the share of denoising steps that a screen saves against finishing all images that are drawn.

    `total` is the number of steps of an image, `draws` the number of images of a rollout.
    """
    if step is None:
        return "0%"
    if total is None:
        return "not measured"
    works = [group_work(one, 1, total, has_answers=False, draws=draws) for one in (step, total)]
    done, unscreened = (work.steps for work in works)
    return f"{1 - done / unscreened:.0%}"


def _audited(figures: Record, name: str, form: str) -> str:
    value, error = (at(key)(figures) for key in (name, f"{name}_error"))
    if value is None:
        return "not measured"
    return form.format(value) + ("" if error is None else f" ± {form.format(error)}")


def phases(records: Sequence[Record]) -> list[tuple[str, float, float]]:
    """Return (phase, mean seconds in a step, share of it); "other" is time outside every phase."""
    seconds = [record["seconds"] for record in records if at("seconds.total")(record)]
    total = math.fsum(spent["total"] for spent in seconds)
    names = [name for name in dict.fromkeys(name for spent in seconds for name in spent) if name != "total"]
    sums = {name: math.fsum(spent.get(name, 0.0) for spent in seconds) for name in names}
    sums["other"] = max(0.0, total - math.fsum(sums.values()))
    return [(name, spent / len(seconds), spent / total) for name, spent in sums.items()] if seconds else []


def heldout(run_dir: Path) -> dict[str, Any] | None:
    """Compare the first held-out evaluation with the last so far; None when none has been made."""
    paths = evaluations(run_dir)
    if not paths:
        return None
    found = [load_evaluation(path) for path in paths]
    before, last = found[0], found[-1]
    try:
        changes, untrained, warning = paired(before, last), paired_heldout(before, last), hacking(before, last)
    except SettingsError as error:  # its settings were changed between the two; the rest of the page is still good
        return {"problem": str(error)}
    sides = [
        [{**asdict(row), "data": _embed(file)} for row, file in zip(evaluation.rows, image_files(path), strict=False)]
        for evaluation, path in ((before, paths[0]), (last, paths[-1]))[: len(paths)]
    ]
    return {
        "problem": None,
        "warning": warning,
        "last": _when(paths[-1]) if len(paths) > 1 else None,
        "ended": step_of(paths[-1]) is None,
        "changes": _labelled(changes),
        "untrained": _labelled(untrained),
        "both": sorted(set(changes) & set(untrained) - {"reward"}),
        "chart": _evaluation_chart(paths, found, len(read(run_dir))),
        "pairs": list(zip(*sides, strict=False)),
    }


def _when(path: Path) -> str:
    step = step_of(path)
    return "after" if step is None else f"step {step}"


def _labelled(changes: Mapping[str, Paired]) -> list[tuple[str, Paired]]:
    return [(LABELS.get(name, name), change) for name, change in changes.items()]


def _evaluation_chart(paths: Sequence[Path], found: Sequence[Evaluation], steps: int) -> dict[str, Any] | None:
    """Return a chart of the evaluations' means over steps; None without one during the training."""
    made = [step_of(path) for path in paths]
    if not any(made):
        return None
    records = [
        {
            "step": steps if step is None else step,
            "trained": summary(row.reward for row in one.rows).mean,
            "untrained": summary(row.heldout_reward for row in one.rows).mean,
        }
        for step, one in zip(made, found, strict=True)
    ]
    lines = {"trained reward": at("trained"), "reward not trained on": at("untrained")}
    return chart("Held-out prompts", records, lines, window=1)


def last_groups(run_dir: Path) -> dict[str, Any] | None:
    """Return the images, scores and answers of the last recorded step; `data` is None where nothing is drawn."""
    records = read(run_dir, SAMPLES)
    if not records:
        return None
    step = records[-1]["step"]
    groups = [
        {
            "title": record["prompt"],
            "rows": {
                kind: [
                    {
                        **sample,
                        "data": _embed(run_dir / sample["image"]) if "image" in sample else None,
                        "caption": show(sample["score"]),
                    }
                    for sample in samples
                ]
                for kind, samples in record["samples"].items()
            },
        }
        for record in records
        if record["step"] == step
    ]
    return {"step": step, "groups": groups}


def at(path: str) -> Getter:
    """Return a reader of `a.b` in a record, or of `a.0` in a list; it returns None if that is not a finite number."""

    def get(record: Record) -> float | None:
        value: Any = record
        for name in path.split("."):
            if isinstance(value, list):
                value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
            else:
                value = value.get(name) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    return get


def chart(title: str, records: Sequence[Record], lines: Mapping[str, Getter], window: int = WINDOW) -> dict[str, Any]:
    """Return points as "x,y x,y" in a square of side 100, of every value and of the running mean."""
    found = {label: [(r["step"], v) for r in records if (v := get(r)) is not None] for label, get in lines.items()}
    values = [value for points in found.values() for _, value in points]
    low, high = min(values, default=0.0), max(values, default=0.0)
    first, last = (records[0]["step"], records[-1]["step"]) if records else (0, 0)

    def draw(points: Sequence[tuple[int, float]]) -> str:
        across, up = max(last - first, 1), (high - low) or 1.0
        places = [(100 * (x - first) / across, 100 - 100 * (y - low) / up) for x, y in points]
        if len(places) == 1:  # a line needs two points
            places.append((places[0][0] + 1, places[0][1]))
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)

    shown = []
    for label, points in found.items():
        if points:
            recent = [[y for _, y in points[max(0, i + 1 - window) : i + 1]] for i in range(len(points))]
            means = [math.fsum(values) / len(values) for values in recent]
            smooth = [(x, mean) for (x, _), mean in zip(points, means, strict=True)]
            shown.append({"label": label, "raw": draw(points), "smooth": draw(smooth), "last": means[-1]})
    return {"title": title, "low": low, "high": high, "first": first, "last": last, "lines": shown}


def _embed(file: Path) -> str:
    try:
        return base64.b64encode(file.read_bytes()).decode()
    except FileNotFoundError:  # removed to save space
        return ""


def _reward_on(pathway: str) -> Getter:
    """Read the reward of the steps whose groups were all on this pathway."""
    reward = at("reward_mean")
    return lambda record: reward(record) if set(record.get("pathways") or ()) == {pathway} else None


def template(name: str) -> jinja2.Template:
    """Return a template of this folder."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=loader)
    return environment.get_template(name)
