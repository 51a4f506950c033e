"""Metrics of the policy before reinforcement learning, and how well previews predict final rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from embedded.makers.accept import accept
from embedded.makers.metrics import Metric, scores
from services.scorers import registry
from services.scorers.base import Scorer
from services.settings import Settings
from trainer.algorithms.ceiling import explained_share
from trainer.clock import Clock
from trainer.data.concepts import read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import GENEVAL, SyncR1Tasks
from trainer.evaluate.compare import right
from trainer.policy.base import Policy
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.segments import ImageSegment
from trainer.run import make_policy
from trainer.scenarios import surrogate_item
from trainer.settings import SyncR1Settings, TrainerSettings
from trainer.turns import continue_images, start
from trainer.types import Segment, Task

PROMPTS, PROMPTS_RANKED, ROLLOUTS = 360, 24, 24
COMPLETIONS = 3  # of each state, for the ceiling
PER_TASK = 100
RANK, CEILING = "preview-to-final rank correlation of BER", "its ceiling: correlation of any function of the state"


def measure(service: Settings, trainer: TrainerSettings, seed: int) -> list[Metric]:
    """Measure the policy on held-out prompts.

    The metrics are those of `accept`, the attribute named correctly (textual pathway), and Spearman's rank correlation
    of BER at the screening step with BER at the end, over the rollouts of a prompt and averaged over prompts.
    """
    policy = make_policy(trainer)
    assert isinstance(policy, ShowO)
    assert isinstance(trainer.data, SyncR1Settings)
    profiles = read_concepts(trainer.data.concepts)
    prompts = read_concept_prompts(trainer.data.heldout, profiles)
    drawn = SyncR1Tasks(prompts, profiles, GENEVAL, (seed,), PROMPTS_RANKED, 1.0).tasks(0)
    concepts = SyncR1Tasks(prompts, profiles, GENEVAL, (seed,), 2 * PROMPTS, 0.0).tasks(0)
    textual = [task for task in concepts if task.pathway == "textual"]
    named = [_named(policy, task, place, seed) for place, task in enumerate(textual)]
    mixed = [task for pair in zip(drawn, concepts, strict=False) for task in pair][:PROMPTS_RANKED]
    ber = registry.build("ber", service.scorers["ber"])
    pairs = [_preview(policy, ber, task, trainer, (seed, place)) for place, task in enumerate(mixed)]
    rank, known = (np.array(column) for column in zip(*pairs, strict=True))
    share = max(0.0, float(known.mean()))
    return [
        *accept(policy, service.scorers["geneval"], PER_TASK).values(),
        Metric("right attribute named", float(np.mean(named)), len(named), None),
        Metric(RANK, float(rank.mean()), len(rank), None, error=float(rank.std(ddof=1) / math.sqrt(len(rank)))),
        Metric(CEILING, math.sqrt(share), len(known), None, error=_root_error(share, known)),
    ]


def _root_error(share: float, known: NDArray[np.float64]) -> float:
    """Return the standard error of the square root of a mean; of 0, the root of its own error."""
    error = float(known.std(ddof=1) / math.sqrt(len(known)))
    return error / (2 * math.sqrt(share)) if share > error else math.sqrt(error)


def _named(policy: Policy, task: Task, place: int, seed: int) -> bool:
    assert task.query is not None
    answer = policy.answer([task.query], [(seed, place, 0)])[0]
    return right(answer.text, task.segments, task.truth) is True


def _preview(
    policy: ShowO, ber: Scorer, task: Task, settings: TrainerSettings, key: Sequence[int]
) -> tuple[float, float]:
    """Return the rank correlation over a prompt's rollouts, and the share of final BER's variance that states explain.

    The share is of COMPLETIONS of each state; its root bounds the correlation of any surrogate with final BER.
    """
    started = start(policy, [task] * ROLLOUTS, [(*key, index) for index in range(ROLLOUTS)], Clock())
    previews = continue_images(policy, started, settings.screening_step)
    early = _ber(ber, task, policy, [rollout.image for rollout in previews])
    finals = []
    for number in range(COMPLETIONS):
        images = [_with_other_noise(rollout.image, (*key, index), number) for index, rollout in enumerate(previews)]
        finals.append(_ber(ber, task, policy, policy.denoise(images, policy.image_steps)))
    share = explained_share(torch.from_numpy(np.array(finals)))  # of [COMPLETIONS, ROLLOUTS]
    return float(spearmanr(early, finals[0]).statistic), share or 0.0


def _ber(ber: Scorer, task: Task, policy: ShowO, segments: Sequence[Segment]) -> NDArray[np.float64]:
    items = [surrogate_item(task, image) for image in policy.images(segments)]
    return np.array([score.value for score in scores(ber, items)])


def _with_other_noise(image: Segment, key: Sequence[int], number: int) -> ImageSegment:
    """Return a preview whose remaining steps draw other numbers; its own for `number` 0."""
    assert isinstance(image, ImageSegment)
    if number == 0:
        return image
    fresh = np.random.default_rng([*key, 5, number]).random(tuple(image.uniform_T2N.shape), np.float32)
    return replace(image, uniform_T2N=torch.from_numpy(fresh.clip(2.0**-24, 1.0 - 2.0**-24)))
