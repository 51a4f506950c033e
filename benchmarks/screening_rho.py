"""Correlations of surrogates with rewards within a prompt, and their ceilings, as tables. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import rankdata

from trainer.algorithms.ceiling import explained_share
from trainer.evaluate.compare import summary

TASKS: Final = {"visual": "visual", "textual": "textual", "none": "GenEval"}
ALL: Final = "all"
REWARD, PART = "reward", "image part"
PAIRS: Final = {  # what is shown: a surrogate of the preview, and what it is to predict
    ("known", REWARD): "terms that read only the answer",
    (REWARD, REWARD): "known+predicted",
    ("surrogate", REWARD): "{scorer} of the preview",
    (PART, PART): "image part of the preview",
    ("der", PART): "der of the preview",
    ("surrogate", "surrogate"): "{scorer} of the preview",
}
Measured = dict[str, Any]  # one prompt


@dataclass(frozen=True)
class Plan:
    """How many rollouts of a prompt, at which steps, with how many completions; `scorer` is the surrogate scorer."""

    rollouts: int
    steps: tuple[int, ...]
    completions: int
    scorer: str


def table(found: Sequence[Measured], plan: Plan) -> Measured:
    """Return, for each task and all, correlations by pair and step, and the share that states explain by step.

    A prompt without spread on one side, or with a missing score, is left out of that cell; `prompts` counts the others.
    """
    by_task = {ALL: list(found), **{name: [one for one in found if one["task"] == name] for name in TASKS}}
    return {
        "prompts": {name: len(own) for name, own in by_task.items()},
        "rollouts": plan.rollouts,
        "completions": plan.completions,
        "steps": list(plan.steps),
        "scorer": plan.scorer,
        "correlations": [
            {"task": name, "surrogate": signal, "target": target, "step": step, **cell}
            for name, own in by_task.items()
            for signal, target in PAIRS
            for step in ((0,) if signal == "known" else plan.steps)
            if (cell := _correlations(own, signal, target, step)) is not None
        ],
        "ceilings": [
            {"task": name, "target": target, "step": step, **cell}
            for name, own in by_task.items()
            for target in (REWARD, PART)
            for step in plan.steps
            if (cell := _ceiling(own, target, step)) is not None
        ],
    }


def _correlations(found: Sequence[Measured], signal: str, target: str, step: int) -> Measured | None:
    pairs = []
    for one in found:
        # the answer is finished before step 1, and so are its terms
        source = one["final"] if step == 0 else one["steps"][str(step)]["preview"]
        pairs.append((source[signal], one["final"][target]))
    spearman = [rho for x, y in pairs if (rho := correlation(x, y, ranked=True)) is not None]
    pearson = [rho for x, y in pairs if (rho := correlation(x, y)) is not None]
    if not spearman:
        return None
    ranks, values = summary(spearman), summary(pearson)
    return {
        "spearman": ranks.mean,
        "spearman_stderr": ranks.stderr,
        "pearson": values.mean,
        "pearson_stderr": values.stderr,
        "prompts": ranks.n,
    }


def _ceiling(found: Sequence[Measured], target: str, step: int) -> Measured | None:
    """Return the mean share that states explain, and the correlation that it allows: its root, 0 below 0."""
    values = [one["steps"][str(step)]["completions"][target] for one in found]
    complete = [torch.tensor(rows) for rows in values if not any(value is None for row in rows for value in row)]
    shares = [share for rows in complete if (share := explained_share(rows)) is not None]
    if not shares:
        return None
    mean, stderr = summary(shares).mean, summary(shares).stderr
    assert mean is not None
    return {"share": mean, "share_stderr": stderr, "rho": math.sqrt(max(0.0, mean)), "prompts": len(shares)}


def correlation(x: Sequence[float | None], y: Sequence[float | None], *, ranked: bool = False) -> float | None:
    """Return Pearson's correlation, or Spearman's of ranks; None if a value is missing or a side has no spread."""
    if None in x or None in y:
        return None
    a, b = (np.array(values, float) for values in (x, y))
    if ranked:
        a, b = rankdata(a), rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 1e-12 else None


def markdown(result: Mapping[str, Any]) -> str:
    """Return the correlations and ceilings as a Markdown table, a row for each task and pair."""
    steps = [0, *result["steps"]]
    lines = [
        f"| task | surrogate -> reward | {' | '.join(f'step {step}' for step in steps)} |",
        "|---|---|" + "---|" * len(steps),
    ]
    for name, label in {**TASKS, ALL: ALL}.items():
        rows: dict[str, dict[int, str]] = {}
        for cell in result["correlations"]:
            if cell["task"] == name:
                title = PAIRS[cell["surrogate"], cell["target"]].format(scorer=result["scorer"])
                target = result["scorer"] if cell["target"] == "surrogate" else cell["target"]
                row = rows.setdefault(f"{title} -> {target}", {})
                row[cell["step"]] = _cell(cell["spearman"], cell["spearman_stderr"])
        for cell in result["ceilings"]:
            if cell["task"] == name:
                row = rows.setdefault(f"at most, any function of the state -> {cell['target']}", {})
                row[cell["step"]] = f"{cell['rho']:.2f} (share {_cell(cell['share'], cell['share_stderr'])})"
        count = result["prompts"][name]
        lines += [
            f"| {label} ({count}) | {title} | {' | '.join(row.get(step, '') for step in steps)} |"
            for title, row in rows.items()
        ]
    return "\n".join(lines)


def _cell(value: float, error: float | None) -> str:
    return f"{value:+.2f}" + ("" if error is None else f" ± {error:.2f}")
