"""Metrics of the policy before reinforcement learning, and how well previews predict final rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from embedded.makers.metrics import Metric, scores
from services.scorers import registry
from services.scorers.base import Scorer
from services.settings import Settings
from synod.contracts import ScoreItem
from trainer.clock import Clock
from trainer.data.concepts import read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import GENEVAL, SyncR1Tasks
from trainer.evaluate.compare import right
from trainer.evaluate.heldout import draw
from trainer.policy.base import Policy
from trainer.rollout import continue_images, start
from trainer.run import make_policy
from trainer.scenarios import surrogate_item
from trainer.settings import SyncR1Settings, TrainerSettings
from trainer.types import Task

PROMPTS, PROMPTS_RANKED, ROLLOUTS = 360, 24, 24
BATCH = 24


def measure(service: Settings, trainer: TrainerSettings, seed: int) -> list[Metric]:
    """Measure the policy on held-out prompts.

    The metrics are GenEval's official verdict over all tasks, the attribute named correctly (textual pathway), and
    Spearman's rank correlation of BER at the screening step with BER at the end, over the rollouts of a prompt and
    averaged over prompts.
    """
    policy = make_policy(trainer)
    assert isinstance(trainer.data, SyncR1Settings)
    profiles = read_concepts(trainer.data.concepts)
    prompts = read_concept_prompts(trainer.data.heldout, profiles)
    drawn = SyncR1Tasks(prompts, profiles, GENEVAL, (seed,), PROMPTS, 1.0).tasks(0)
    concepts = SyncR1Tasks(prompts, profiles, GENEVAL, (seed,), 2 * PROMPTS, 0.0).tasks(0)
    textual = [task for task in concepts if task.pathway == "textual"]
    correct = _correct(policy, registry.build("geneval", service.scorers["geneval"]), drawn)
    named = [_named(policy, task, place, seed) for place, task in enumerate(textual)]
    mixed = [task for pair in zip(drawn, concepts, strict=False) for task in pair][:PROMPTS_RANKED]
    ber = registry.build("ber", service.scorers["ber"])
    ranks = [_rank(policy, ber, task, trainer, (seed, place)) for place, task in enumerate(mixed)]
    return [
        Metric("policy: held-out GenEval prompts drawn right", float(np.mean(correct)), len(correct), None),
        Metric("policy: right attribute named", float(np.mean(named)), len(named), None),
        Metric("preview-to-final rank correlation of BER", float(np.mean(ranks)), len(ranks), None),
    ]


def _correct(policy: Policy, scorer: Scorer, tasks: Sequence[Task]) -> list[bool]:
    found: list[bool] = []
    for first in range(0, len(tasks), BATCH):
        places = range(first, min(first + BATCH, len(tasks)))
        _, images = draw(policy, tasks, places)
        items = [ScoreItem(p, geneval=tasks[i].prompt.geneval) for i, p in zip(places, images, strict=True)]
        found += [bool(score.detail["official"]) for score in scores(scorer, items)]
    return found


def _named(policy: Policy, task: Task, place: int, seed: int) -> bool:
    assert task.query is not None
    answer = policy.answer([task.query], [(seed, place, 0)])[0]
    return right(answer.text, task.segments, task.truth) is True


def _rank(policy: Policy, ber: Scorer, task: Task, settings: TrainerSettings, key: Sequence[int]) -> float:
    started = start(policy, [task] * ROLLOUTS, [(*key, index) for index in range(ROLLOUTS)], Clock())
    previews = continue_images(policy, started, settings.screening_step)
    finished = continue_images(policy, previews, policy.image_steps)
    early, late = (
        [score.value for score in scores(ber, [surrogate_item(task, p) for p in policy.images(images)])]
        for images in ([rollout.image for rollout in rollouts] for rollouts in (previews, finished))
    )
    return float(spearmanr(early, late).statistic)
