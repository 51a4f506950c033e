"""Figures of the policy's supervised start: the room that reinforcement learning has, and what a preview foretells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from embedded.makers.figures import Figure, scores
from services.scorers import registry
from services.scorers.base import Scorer
from services.settings import Settings
from synod.contracts import ScoreItem
from trainer.compare import right
from trainer.data import Source, read_concepts, read_prompts
from trainer.evaluate import draw
from trainer.policy.base import Policy
from trainer.reasoning import surrogate_item
from trainer.rollout import begin, reason
from trainer.session import make_policy
from trainer.settings import TrainerSettings
from trainer.types import Task

PROMPTS, PROMPTS_RANKED, ROLLOUTS = 360, 24, 24
BATCH = 24


def figures(service: Settings, trainer: TrainerSettings, seed: int) -> list[Figure]:
    """On held-out prompts: GenEval's official verdict, all tasks alike; the attribute named right (textual pathway);
    Spearman's rank correlation, over rollouts of one prompt and averaged over prompts, of BER at the screening step
    with BER at the end."""
    policy = make_policy(trainer)
    profiles = read_concepts(trainer.data.concepts)
    prompts = read_prompts(trainer.data.heldout, profiles)
    drawn = Source(prompts, profiles, seed, PROMPTS, 1.0).tasks(0)
    concepts = Source(prompts, profiles, seed, 2 * PROMPTS, 0.0).tasks(0)
    asked = [task for task in concepts if task.pathway == "textual"]
    correct = _correct(policy, registry.build("geneval", service.scorers["geneval"]), drawn, trainer)
    named = [_named(policy, task, place, trainer, seed) for place, task in enumerate(asked)]
    mixed = [task for pair in zip(drawn, concepts, strict=False) for task in pair][:PROMPTS_RANKED]
    ber = registry.build("ber", service.scorers["ber"])
    ranks = [_rank(policy, ber, task, trainer, (seed, place)) for place, task in enumerate(mixed)]
    return [
        Figure("policy: held-out GenEval prompts drawn right", float(np.mean(correct)), len(correct), None),
        Figure("policy: right attribute named", float(np.mean(named)), len(named), None),
        Figure("preview-to-final rank correlation of BER", float(np.mean(ranks)), len(ranks), None),
    ]


def _correct(policy: Policy, scorer: Scorer, tasks: Sequence[Task], settings: TrainerSettings) -> list[bool]:
    found: list[bool] = []
    for first in range(0, len(tasks), BATCH):
        places = range(first, min(first + BATCH, len(tasks)))
        _, images = draw(policy, tasks, places, settings)
        items = [ScoreItem(p, geneval=tasks[i].prompt.geneval) for i, p in zip(places, images, strict=True)]
        found += [bool(score.detail["official"]) for score in scores(scorer, items)]
    return found


def _named(policy: Policy, task: Task, place: int, settings: TrainerSettings, seed: int) -> bool:
    answer = reason(policy, task, settings, (seed, place), [0])[0]
    assert answer is not None
    return right(answer.text, task.segments, task.truth) is True


def _rank(policy: Policy, ber: Scorer, task: Task, settings: TrainerSettings, key: Sequence[int]) -> float:
    steps, places = settings.sampler.denoising_steps, range(ROLLOUTS)
    texts = reason(policy, task, settings, key, places)
    begun = begin(policy, [task] * ROLLOUTS, texts, settings, key, places)
    previews = policy.denoise(begun, settings.screening_step)
    early, late = (
        [score.value for score in scores(ber, [surrogate_item(task, p) for p in policy.images(images)])]
        for images in (previews, policy.denoise(previews, steps))
    )
    return float(spearmanr(early, late).statistic)
