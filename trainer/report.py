"""One self-contained HTML page about a run, finished or not: held-out prompts, curves, time, images."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from synod.contracts import Pixels
from synod.errors import SettingsError
from synod.images import encode_png
from trainer import curves
from trainer.compare import Evaluation, Row, paired, summary
from trainer.curves import Chart, Getter, Record, at
from trainer.evaluate import load_evaluation
from trainer.grids import load_grid, write_whole
from trainer.metrics import TEXTS, grids, read, steps_saved

TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
CHARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "Surrogate: threshold": {"threshold": "threshold"},
    "Pass rate of previews": {"pass rate": "pass_rate"},
    "Previews and kept images a step": {"previews": "previews", "kept": "kept"},
    "Denoising steps saved by screening (share)": {"saved": "denoising_steps_saved_ratio"},
    "Loss": {"text": "loss_text", "image": "loss_image"},
    "KL to the reference (k3)": {"text": "kl_text", "image": "kl_image"},
    "Clipped decisions (share)": {"text": "clip_fraction_text", "image": "clip_fraction_image"},
    "Largest ratio": {"text": "ratio_max_text", "image": "ratio_max_image"},
    "Gradient norm": {"before clipping": "grad_norm"},
    "Spread within a group": {"std of reward": "reward_std", "mean |advantage|": "advantage_abs"},
    "Missing rewards and skipped groups": {"masked": "masked", "skipped": "skipped"},
}
PATHWAYS: Final = {"visual": "visual", "textual": "textual", "none": "no concept"}
LABELS: Final = {
    "instruct": "right answers, visual instruct",
    "attribute": "right answers, textual attribute",
    "correct": "GenEval prompts drawn exactly as asked",
}


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises SettingsError: no directory, or broken files in it."""
    if not run.is_dir():
        raise SettingsError(f"{run} is no directory of a run; give the [trainer] run_dir that was trained")
    path = run / "report.html"
    write_whole(path, _template().render(view=view(run)).encode())
    return path


def fragment(run: Path) -> tuple[str, str]:
    """(CSS rules, HTML without head and body) of the same report, for a page that has more to tell."""
    shown = view(run)
    module: Any = _template().make_module({"view": shown})
    return str(module.style()), str(module.body(shown))


def view(run: Path) -> dict[str, Any]:
    """Everything the page shows, as plain values; a part without data is empty or None."""
    records = read(run)
    return {
        "name": run.resolve().name,
        "steps": len(records),
        "window": curves.WINDOW,
        "tiles": tiles(records),
        "charts": charts(records),
        "phases": phases(records),
        "heldout": heldout(run),
        "groups": last_groups(run),
        "geometry": {name: getattr(curves, name) for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")},
    }


def tiles(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(label, figure): rewards at both ends, and sums or means over the run. A figure nobody measured is left out."""

    def mean(path: str, part: slice = slice(None)) -> float | None:
        return summary(map(at(path), records[part])).mean

    window = max(1, min(curves.WINDOW, len(records) // 2))
    found = [
        (f"reward, first {window} steps", mean("reward_mean", slice(window)), "{:.3f}"),
        (f"reward, last {window} steps", mean("reward_mean", slice(-window, None)), "{:.3f}"),
        ("pass rate", mean("pass_rate"), "{:.1%}"),
        ("previews a step", mean("previews"), "{:.1f}"),
        ("denoising steps saved", steps_saved(records), "{:.0%}"),
        ("groups filled up at the cap", _total(records, "capped"), "{:.0f}"),
        ("rewards missing", _total(records, "masked"), "{:.0f}"),
        ("groups skipped", _total(records, "skipped"), "{:.0f}"),
        ("seconds a step", mean("seconds.total"), "{:.1f}"),
        ("memory at most", max(filter(None, map(at("max_rss_mb"), records)), default=None), "{:,.0f} MB"),
    ]
    return [(label, form.format(value)) for label, value, form in found if value is not None]


def charts(records: Sequence[Record]) -> list[Chart]:
    """Those that have something to show, rewards first."""
    components = sorted({name for record in records for name in record.get("components") or ()})
    reward: dict[str, Getter] = {"all": at("reward_mean")}
    pathways = {path for record in records for path in record.get("pathways") or ()}
    reward |= {label: _on(name) for name, label in PATHWAYS.items() if name in pathways and len(pathways) > 1}
    found = [
        curves.chart("Reward", records, reward),
        curves.chart("Components", records, {name: at(f"components.{name}") for name in components}),
    ]
    for title, lines in CHARTS.items():
        found.append(curves.chart(title, records, {label: at(path) for label, path in lines.items()}))
    return [chart for chart in found if chart is not None]


def phases(records: Sequence[Record]) -> list[tuple[str, float, float]]:
    """(phase, mean seconds a step, share of the step), in the order of a step; `other` is what no phase names."""
    seconds = [record["seconds"] for record in records if at("seconds.total")(record)]
    total = math.fsum(spent["total"] for spent in seconds)
    names = [name for name in dict.fromkeys(name for spent in seconds for name in spent) if name != "total"]
    sums = {name: math.fsum(spent.get(name, 0.0) for spent in seconds) for name in names}
    sums["other"] = max(0.0, total - math.fsum(sums.values()))
    return [(name, spent / len(seconds), spent / total) for name, spent in sums.items()] if seconds else []


def heldout(run: Path) -> dict[str, Any] | None:
    """The held-out evaluation before training, and compared with it the one after: None when there is none yet."""
    before, after = (_evaluation(run, name) for name in ("before", "after"))
    if before is None:
        return None
    try:
        changes = paired(before, after or before)
    except (
        SettingsError
    ) as error:  # the settings of the evaluation were changed on the way: the rest of the page stands
        return {"problem": str(error)}
    other = after.rows if after else before.rows
    drawn = zip(before.rows, before.images, other, after.images if after else before.images, strict=False)
    pairs = [
        {"prompt": a.prompt, "before": _shown(a, p), "after": _shown(b, q) if after else None} for a, p, b, q in drawn
    ]
    return {
        "problem": None,
        "done": after is not None,
        "changes": [(LABELS.get(name, name), p, _verdict(p.difference, p.stderr)) for name, p in changes.items()],
        "pairs": pairs,
    }


def last_groups(run: Path) -> dict[str, Any] | None:
    """Images and answers of the last step that kept some."""
    found = grids(run)
    if not found:
        return None
    step = found[-1][2]
    texts = {record["name"]: record["text"] for record in read(run, TEXTS) if record["step"] == step}
    groups = []
    for path, name, _ in (grid for grid in found if grid[2] == step):
        title, *answers = texts.get(name, name).split("\n")
        rows = [(row, [{"caption": c, **image(p)} for c, p in cells]) for row, cells in load_grid(path)]
        groups.append({"title": title, "answers": answers, "rows": rows})
    return {"step": step, "groups": groups}


def image(pixels: Pixels) -> dict[str, Any]:
    return {"data": base64.b64encode(encode_png(pixels)).decode(), "width": pixels.shape[1], "height": pixels.shape[0]}


def _shown(row: Row, pixels: Pixels) -> dict[str, Any]:
    return {**image(pixels), "answer": row.answer, "reward": row.reward, "failure": row.failure, "right": row.right}


def _evaluation(run: Path, name: str) -> Evaluation | None:
    try:
        return load_evaluation(run / "evaluation" / f"{name}.json")
    except FileNotFoundError:
        return None


def _verdict(difference: float | None, stderr: float | None) -> str:
    """`up` or `down` for a change of more than two standard errors."""
    if difference is None or stderr is None or abs(difference) <= 2 * stderr:
        return ""
    return "up" if difference > 0 else "down"


def _on(pathway: str) -> Getter:
    """The reward of the steps whose groups were all on this pathway."""
    reward = at("reward_mean")
    return lambda record: reward(record) if set(record.get("pathways") or ()) == {pathway} else None


def _total(records: Sequence[Record], path: str) -> float | None:
    found = [value for value in map(at(path), records) if value is not None]
    return math.fsum(found) if found else None


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text())
