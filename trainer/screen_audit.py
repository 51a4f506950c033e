"""The audit of a run's screen: what each step adds to it, and what is reported.

Rejected rollouts that the audit finishes never enter an update. Their seconds are in the phase "audit" of a step.
`trainer.screen_auto` has what `screen.select` "auto" measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.algorithms.audit import Audit, Correlation, Observed
from trainer.algorithms.auto import MEMORY, group_work
from trainer.algorithms.costs import Costs, Work
from trainer.groups import ScoredGroup
from trainer.rewards.intrinsic import READ_PREVIEWS
from trainer.settings import INTRINSIC, TrainerSettings
from trainer.types import Pathway

Audits = Mapping[Pathway, Audit]
JUDGED = 20  # screened groups after which a surrogate is judged, once
FAIR = 0.5  # the rank correlation below which a screen of previews hardly ever pays (docs/screens.md)


def update_audits(audits: Audits, groups: Sequence[ScoredGroup], settings: TrainerSettings) -> dict[Pathway, Audit]:
    """Return the audits with these groups added; those without a screen are left out."""
    found = dict(audits)
    for group in groups:
        if any(score is not None for score in group.previews.scores):
            pathway = group.previews.task.pathway
            found[pathway] = _add(found.get(pathway, Audit()), group, settings)
    return found


def _add(audit: Audit, group: ScoredGroup, settings: TrainerSettings) -> Audit:
    previews, both_tails = group.previews, settings.screen.select == "best_and_worst"
    kept = previews.screened.indices
    rewarded = [*((i, reward, 1.0) for i, reward in zip(kept, group.rewards, strict=True))]
    rewarded += [(i, r, 1 / settings.screen.audit) for i, r in zip(previews.audited, group.audit, strict=True)]
    observed = [
        Observed(
            score,
            reward.value,
            weight,
            kept=i in kept,
            rejected=both_tails or (previews.threshold is not None and score <= previews.threshold),
        )
        for i, reward, weight in rewarded
        if reward.value is not None and (score := previews.scores[i]) is not None
    ]
    population = settings.loss.baseline == "population"
    added = audit.add(previews.scores, kept, observed, population=population, both_tails=both_tails)
    has_answers, draws = previews.task.query is not None, len(previews.task.draws)
    plain = group_work(None, len(kept), settings.policy.image_steps, has_answers=has_answers, draws=draws)
    return replace(added, work=added.work + work_of(group, settings), plain=added.plain + plain)


def work_of(group: ScoredGroup, settings: TrainerSettings, *, in_update: bool = True) -> Work:
    """Return the work of a group, without that of an audit."""
    previews, draws = group.previews, len(group.previews.task.draws)
    drawn, step, finished = previews.screened.drawn, previews.step, len(group.rewards)
    total = draws * settings.policy.image_steps
    measured = previews.foretold or {}
    decoded = sum(drawn for at in measured if at) if measured else drawn * bool(step)
    return Work(
        answers=drawn * (previews.task.query is not None),
        steps=drawn * step + finished * (total - step),
        images=decoded + draws * finished,
        scores=sum(score is not None for score in previews.scores) + drawn * len(measured),
        rewards=finished,
        rollouts=min(finished, settings.screen.group_size) * in_update,
    )


def update_costs(
    costs: Costs,
    groups: Sequence[ScoredGroup],
    replaced: int,
    seconds: Sequence[Mapping[str, float]],
    settings: TrainerSettings,
) -> Costs:
    """Return the costs with a step's `seconds` of every rank; the first `replaced` groups were not in the update.

    The policy's own reading counts as scoring and rewarding, but for the share of audited images, each of which takes
    as long as an image of a group. What "auto" decides by fades, so that it follows the policy's present costs.
    """
    spent = {name: sum(one.get(name, 0.0) for one in seconds) for name in {name for one in seconds for name in one}}
    finished, audited = sum(len(group.rewards) for group in groups), sum(len(group.audit) for group in groups)
    spent[INTRINSIC] = spent.get(INTRINSIC, 0.0) * finished / max(1, finished + audited)
    phases = (
        ("reason",),
        ("preview", "finish"),
        ("decode",),
        ("surrogate", READ_PREVIEWS),
        ("reward_wait", INTRINSIC),
        ("update",),
    )
    done = [work_of(group, settings, in_update=place >= replaced) for place, group in enumerate(groups)]
    return costs.add(
        Work(*(sum(spent.get(name, 0.0) for name in names) for names in phases)),
        sum(done, Work()),
        memory=MEMORY if settings.screen.select == "auto" else 1.0,
    )


def doubts(before: Audits, after: Audits, costs: Costs) -> Iterator[str]:
    """Yield a line about each pathway whose surrogate has just been found to predict rewards poorly.

    Poorly: after JUDGED groups the rank correlation is below FAIR by more than its error.
    """
    for pathway, audit in after.items():
        rho, error = audit.spearman.value, audit.spearman.error
        is_due = before.get(pathway, Audit()).groups < JUDGED <= audit.groups
        if is_due and rho is not None and error is not None and rho + error < FAIR:
            yield (
                f'pathway "{pathway}": the surrogate predicts rewards poorly, with a rank correlation of '
                f"{_show(rho)} ± {_show(error)} in {audit.groups} groups. Below about {FAIR} a screen hardly ever "
                f"pays: signal per second {_show(audit.signal_per_second(costs))} of plain groups. Give "
                '[trainer.screen] select = "auto" or "extremes"'
            )


def audit_record(audits: Audits, costs: Costs) -> dict[str, Any]:
    """Return the figures for a line of metrics.jsonl: nothing without an audit.

    `audit` follows from the rewards alone, `signal_per_second` also from measured times.
    """
    if not audits:
        return {}
    return {
        "audit": {pathway: _figures(audit) for pathway, audit in audits.items()},
        "signal_per_second": {pathway: audit.signal_per_second(costs) for pathway, audit in audits.items()},
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
        f"signal per second {_show(audit.signal_per_second(costs))} of plain groups"
        for pathway, audit in audits.items()
    ]
    return f"audit of the screen ({sum(a.audited for a in audits.values())} rejected rollouts): {'; '.join(parts)}"


def restored(saved: Mapping[str, Any]) -> Audit:
    """Return an audit from what `dataclasses.asdict` made of it."""
    correlations = {name: restored_correlation(saved[name]) for name in ("pearson", "spearman")}
    return Audit(**{**saved, **correlations, **{name: Work(**saved[name]) for name in ("work", "plain")}})


def restored_correlation(saved: Mapping[str, Any]) -> Correlation:
    """Return a correlation from what `dataclasses.asdict` made of it."""
    return Correlation(**{**saved, "squares": tuple(saved["squares"])})


def restored_costs(saved: Mapping[str, Any]) -> Costs:
    """Return costs from what `dataclasses.asdict` made of them."""
    return Costs(Work(**saved["seconds"]), Work(**saved["done"]))


def _show(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
