"""The advantages of a step: which rewards answer for which modality's decisions. Pure.

A term of the reward that was fixed before the image was drawn (a scorer that does not read the image, such as TIER)
cannot depend on the image's decisions. Given the answers, E[grad log p(image)] = 0, so such a term adds nothing to the
expected gradient of the image's decisions and only noise to its estimate. With `loss.credit` "split" the images'
advantages are those of the reward without these terms; the answers' are those of the whole reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.algorithms.advantage import Slope, population_baseline, step_advantages
from trainer.algorithms.aggregate import GroupRewards, without_fixed
from trainer.algorithms.screen import extremes
from trainer.groups import ScoredGroup
from trainer.settings import LossSettings, ScreenSettings
from trainer.settings.loss import SMALLEST_GROUP
from trainer.types import MODALITIES, Modality, Pathway, Reward, RewardSpec

MIN_REWARDS = 2  # of a group in an update: one reward equals its own mean
SlopeKey = tuple[Modality, Pathway, int]
Slopes = Mapping[SlopeKey, Slope]
"""The running slopes on the surrogate score of the whole reward ("text"), and of its part that images answer for.

Each pathway and each denoising step of a screen has its own: their scores foretell different shares of the reward.
"""


def update_reward_slopes(slopes: Slopes, groups: Sequence[ScoredGroup]) -> dict[SlopeKey, Slope]:
    """Return the slopes of reward on surrogate score, updated with these groups.

    A group that measures screens has the scores of every step, so a screen that moves finds a slope at its new step.
    """
    found = dict(slopes)
    for group in groups:
        previews = group.previews
        scores: Mapping[int, Sequence[float | None]] = previews.foretold or {previews.step: _kept_scores(group)}
        for modality in MODALITIES:
            rewards = [reward.value for reward in _credited(group, modality)[0]]
            for step, here in scores.items():
                key = modality, previews.task.pathway, step
                found[key] = found.get(key, Slope()).update(here, rewards)
    return found


def _slope_key(group: ScoredGroup, modality: Modality) -> SlopeKey:
    return modality, group.previews.task.pathway, group.previews.step


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """Which rollouts of a group enter the update of a modality, by their places, and their advantages in order."""

    places: tuple[int, ...]
    advantage: Tensor


def modality_advantages(
    groups: Sequence[ScoredGroup], slopes: Slopes, settings: LossSettings, screen: ScreenSettings
) -> dict[Modality, list[Credit]]:
    """Return, for each modality, the advantages of each group's rollouts that enter the update.

    These have a reward. Each modality is centred and normalised by its own rewards, those of all finished rollouts;
    with `select` "extremes" or "auto" it takes the `group_size` of them whose own advantages are furthest from 0. A
    screen of "auto" keeps both tails, so its baseline is that of all previews.
    """
    count = screen.group_size if screen.select in ("extremes", "auto") else None
    if screen.select == "auto":
        settings = settings.model_copy(update={"baseline": "population"})
    text = _credits(groups, _advantages(groups, slopes, settings, "text"), count)
    if settings.credit == "total":
        return {"text": text, "image": text}
    return {"text": text, "image": _credits(groups, _advantages(groups, slopes, settings, "image"), count)}


def _credits(groups: Sequence[ScoredGroup], advantages: Sequence[Tensor], count: int | None) -> list[Credit]:
    """Return the credits of advantages of all rewarded rollouts; `count` limits them to the extremes."""
    found = []
    for group, advantage in zip(groups, advantages, strict=True):
        places = rewarded(group)
        chosen = range(len(places)) if count is None else extremes(advantage.tolist(), count)
        found.append(Credit(tuple(places[i] for i in chosen), advantage[list(chosen)]))
    return found


def rewarded(group: ScoredGroup) -> list[int]:
    """Return the places of the rollouts that have a reward."""
    return [place for place, reward in enumerate(group.rewards) if reward.value is not None]


def is_usable(group: ScoredGroup, settings: LossSettings) -> bool:
    """Return whether a group has enough rewards for an update; the update skips it if not.

    "group_std" and "gdpo" need SMALLEST_GROUP of them, however many rollouts there are: divided by their deviation, two
    rewards would be +-.707 whatever their difference.
    """
    divides = settings.normalise == "group_std" or group.previews.task.reward.aggregation == "gdpo"
    return len(rewarded(group)) >= (SMALLEST_GROUP if divides else MIN_REWARDS)


def _advantages(
    groups: Sequence[ScoredGroup], slopes: Slopes, settings: LossSettings, modality: Modality
) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    by_aggregation = {group.previews.task.reward.aggregation for group in groups}
    for aggregation in sorted(by_aggregation):
        places = [i for i, group in enumerate(groups) if group.previews.task.reward.aggregation == aggregation]
        rewards = [GroupRewards.of(*_credited(groups[i], modality)) for i in places]
        shifts = [
            _baseline_shift(groups[i], slopes.get(_slope_key(groups[i], modality), Slope()), settings) for i in places
        ]
        advantages = step_advantages(
            rewards,
            aggregation=aggregation,
            normalise=settings.normalise,
            shifts=shifts,
            clamp=settings.advantage_clamp,
        )
        found |= {i: a[r.valid_G] for i, a, r in zip(places, advantages, rewards, strict=True)}
    return [found[i] for i in range(len(groups))]


def _credited(group: ScoredGroup, modality: Modality) -> tuple[Sequence[Reward], RewardSpec]:
    """Return the rewards of a group that a modality's decisions answer for."""
    spec = group.previews.task.reward
    return (group.rewards, spec) if modality == "text" else without_fixed(group.rewards, spec)


def _baseline_shift(group: ScoredGroup, slope: Slope, settings: LossSettings) -> float:
    if settings.baseline == "group":
        return 0.0
    kept = _kept_scores(group)
    return population_baseline(slope, [kept[place] for place in rewarded(group)], group.previews.scores)


def _kept_scores(group: ScoredGroup) -> list[float | None]:
    return [group.previews.scores[i] for i in group.previews.screened.indices]
