"""The audit of a run's screen: what each step adds to it, and what is reported.

Rejected rollouts that the audit finishes never enter an update. Their seconds are in the phase "audit" of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.algorithms.audit import Audit, Correlation, Costs, Observed
from trainer.rollout import ScoredGroup
from trainer.settings import TrainerSettings
from trainer.types import Pathway

Audits = Mapping[Pathway, Audit]


def update_audits(audits: Audits, groups: Sequence[ScoredGroup], settings: TrainerSettings) -> dict[Pathway, Audit]:
    """Return the audits with these groups added; those without a screen are left out."""
    found = dict(audits)
    for group in groups:
        if any(score is not None for score in group.previews.scores):
            pathway = group.previews.task.pathway
            found[pathway] = _add(found.get(pathway, Audit()), group, settings)
    return found


def _add(audit: Audit, group: ScoredGroup, settings: TrainerSettings) -> Audit:
    previews = group.previews
    kept, drawn, step = previews.screened.indices, previews.screened.drawn, previews.step
    rewarded = [*((i, reward, 1.0) for i, reward in zip(kept, group.rewards, strict=True))]
    rewarded += [(i, r, 1 / settings.screen.audit) for i, r in zip(previews.audited, group.audit, strict=True)]
    observed = [
        Observed(score, reward.value, weight, i in kept, previews.threshold is not None and score <= previews.threshold)
        for i, reward, weight in rewarded
        if reward.value is not None and (score := previews.scores[i]) is not None
    ]
    total = settings.policy.image_steps
    added = audit.add(previews.scores, kept, observed, population=settings.loss.baseline == "population")
    return replace(
        added,
        steps=added.steps + drawn * step + len(kept) * (total - step),
        steps_unscreened=added.steps_unscreened + drawn * total,
    )


def update_costs(
    costs: Costs, groups: Sequence[ScoredGroup], replaced: int, seconds: Sequence[Mapping[str, float]]
) -> Costs:
    """Return the costs with a step's `seconds` of every rank; the first `replaced` groups were not in the update."""
    spent = {name: sum(one.get(name, 0.0) for one in seconds) for name in {name for one in seconds for name in one}}
    drawn = sum(group.previews.screened.drawn for group in groups)
    previewed = sum(group.previews.screened.drawn for group in groups if group.previews.step)
    finished = sum(len(group.rewards) for group in groups)
    return Costs(
        costs.draw + spent.get("reason", 0.0) + spent.get("preview", 0.0),
        costs.surrogate + spent.get("surrogate", 0.0),
        costs.decode + spent.get("decode", 0.0),
        costs.finish + spent.get("finish", 0.0) + spent.get("reward_wait", 0.0),
        costs.update + spent.get("update", 0.0),
        costs.drawn + drawn,
        costs.decoded + previewed + finished,
        costs.finished + finished,
        costs.updated + sum(len(group.rewards) for group in groups[replaced:]),
    )


def audit_record(audits: Audits, costs: Costs) -> dict[str, Any]:
    """Return the figures for a line of metrics.jsonl: nothing without an audit.

    `audit` follows from the rewards alone, `signal_per_second` also from measured times.
    """
    if not audits:
        return {}
    return {
        "audit": {pathway: _figures(audit) for pathway, audit in audits.items()},
        "signal_per_second": {pathway: costs.signal_per_second(audit) for pathway, audit in audits.items()},
    }


def _figures(audit: Audit) -> dict[str, float | None]:
    return {
        "groups": audit.groups,
        "audited": audit.audited,
        "spearman": audit.spearman.value,
        "spearman_error": audit.spearman.error,
        "pearson": audit.pearson.value,
        "pearson_error": audit.pearson.error,
        "false_rejections": audit.false_rejections,
        "denoising_steps_saved_ratio": audit.steps_saved,
        "signal": audit.signal,
    }


def audit_line(audits: Audits, costs: Costs) -> str | None:
    """Return one line about a run's screen; None without an audit."""
    if not audits:
        return None
    parts = [
        f"{pathway}: rank correlation {_show(audit.spearman.value)} ± {_show(audit.spearman.error)}, "
        f"signal per second {_show(costs.signal_per_second(audit))} of plain groups"
        for pathway, audit in audits.items()
    ]
    return f"audit of the screen ({sum(a.audited for a in audits.values())} rejected rollouts): {'; '.join(parts)}"


def restored(saved: Mapping[str, Any]) -> Audit:
    """Return an audit from what `dataclasses.asdict` made of it."""
    sums = {name: {**saved[name], "squares": tuple(saved[name]["squares"])} for name in ("pearson", "spearman")}
    return Audit(**{**saved, **{name: Correlation(**one) for name, one in sums.items()}})


def _show(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
