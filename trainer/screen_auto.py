"""`screen.select` "auto" in a run: each pathway's screen, what the groups of a step add to it, and what is reported.

Everything follows from gathered rewards, scores and seconds, so all ranks decide alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.algorithms.auto import AutoScreen, Estimate, Foresight, screen_name
from trainer.algorithms.costs import Costs
from trainer.groups import ScoredGroup
from trainer.screen_audit import restored_correlation
from trainer.settings import TrainerSettings
from trainer.types import Pathway

AutoScreens = Mapping[Pathway, AutoScreen]
CORRELATIONS = ("correlation", "rank_correlation")  # of a Foresight
Gains = Mapping[Pathway, Mapping[int | None, Estimate]]  # of the screen at each step, and of none


def first_screen(pathway: Pathway) -> AutoScreen:
    """Return the screen of a pathway before anything was measured: by finished answers, if it has any."""
    return AutoScreen(None if pathway == "none" else 0)


def update_screens(
    screens: AutoScreens, groups: Sequence[ScoredGroup], costs: Costs, settings: TrainerSettings
) -> tuple[dict[Pathway, AutoScreen], Gains]:
    """Return (the screens with the groups of a step added, moved to where they pay by these costs; all gains)."""
    found, size, last = dict(screens), settings.screen.group_size, settings.policy.image_steps
    for group in groups:
        pathway, foretold = group.previews.task.pathway, group.previews.foretold
        screen = found.setdefault(pathway, first_screen(pathway))
        if foretold is not None:
            found[pathway] = screen.add(foretold, [reward.value for reward in group.rewards], size, last)
    gains = screen_gains(found, costs, settings)
    return {pathway: one.moved(gains[pathway]) for pathway, one in found.items()}, gains


def screen_gains(screens: AutoScreens, costs: Costs, settings: TrainerSettings) -> Gains:
    """Return the gains of every pathway by these costs."""
    size, draws = settings.screen.group_size, sum(result != "answer" for result in settings.data.results)
    return {
        pathway: one.gains(costs, size, has_answers=pathway != "none", draws=draws) for pathway, one in screens.items()
    }


def auto_record(screens: AutoScreens, gains: Gains) -> dict[str, Any]:
    """Return the figures for a line of metrics.jsonl.

    Gains are in `signal_per_second`, because they follow from measured times; so do the screens' steps.
    """
    return {
        "screens": {pathway: screen.step for pathway, screen in screens.items()},
        "foresight": {pathway: _figures(screen) for pathway, screen in screens.items()},
        "signal_per_second": {
            pathway: {str(step): gain._asdict() for step, gain in found.items() if step is not None}
            for pathway, found in gains.items()
        },
    }


def _figures(screen: AutoScreen) -> dict[str, dict[str, float | None]]:
    return {
        str(step): {
            "measured": screen.measured,
            "spearman": one.rank_correlation.value,
            "spearman_error": one.rank_correlation.error,
            "pearson": one.correlation.value,
            "pearson_error": one.correlation.error,
            "false_rejections": one.false_rejections,
            "signal": one.signal.value if screen.has_evidence else None,
            "signal_error": one.signal.error if screen.has_evidence else None,
        }
        for step, one in sorted(screen.foresights.items())
    }


def moves(before: AutoScreens, after: AutoScreens, gains: Gains, settings: TrainerSettings) -> Iterator[str]:
    """Yield a line about each pathway whose screen has moved."""
    for pathway, screen in after.items():
        if before.get(pathway, first_screen(pathway)).step != screen.step:
            yield f"the screen moves: {_line(after, pathway, gains, settings)}"


def auto_line(screens: AutoScreens, costs: Costs, settings: TrainerSettings) -> str | None:
    """Return one line about where a run's screens are; None before the first step."""
    gains = screen_gains(screens, costs, settings)
    lines = [_line(screens, pathway, gains, settings) for pathway in screens]
    return f"screens: {'; '.join(lines)}" if lines else None


def _line(screens: AutoScreens, pathway: Pathway, gains: Gains, settings: TrainerSettings) -> str:
    screen, last = screens[pathway], settings.policy.image_steps
    found = [
        f"{screen_name(step, last)} {gain.value:.2f}" + (f" ± {gain.error:.2f}" if gain.error else "")
        for step, gain in sorted(gains[pathway].items(), key=lambda item: -item[1].value)
        if step is not None
    ]
    verdict = f'pathway "{pathway}" screens {"nothing" if screen.step is None else screen_name(screen.step, last)}'
    if screen.step is None:
        verdict += ", because no screen pays by more than its error" if found else " yet"
    measured = f"{screen.measured} group{'s' * (screen.measured != 1)} measured"
    if not found:
        return f"{verdict} ({measured})"
    return f"{verdict} (signal per second of plain groups, {measured}: {', '.join(found)})"


def restored_screen(saved: Mapping[str, Any]) -> AutoScreen:
    """Return a pathway's screen from what `dataclasses.asdict` made of it."""
    found = {
        step: Foresight(**{**one, **{name: restored_correlation(one[name]) for name in CORRELATIONS if name in one}})
        for step, one in saved["foresights"].items()
    }
    return AutoScreen(saved["step"], saved["measured"], found)
