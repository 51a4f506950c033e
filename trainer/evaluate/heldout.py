"""Held-out evaluation: the same prompts and random numbers before and after training.

`trainer.evaluate.compare` compares two evaluations pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from synod.contracts import Pixels, ScoreItem
from synod.errors import SettingsError
from trainer.checkpoint import file_digest
from trainer.clock import Clock
from trainer.data.source import heldout_tasks
from trainer.evaluate.compare import Evaluation, Row, right
from trainer.images import write_images, write_whole
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.rollout import continue_images, reward_items, start
from trainer.settings import TrainerSettings
from trainer.types import Reward, RewardSpec, Rollout, Task

SEED: Final = 0
BEFORE, AFTER, DURING = (f"evaluation/{name}.json" for name in ("before", "after", "step-{:06d}"))  # in RUN
SHOWN: Final = 24  # images kept with an evaluation
_HELD_OUT: Final = 2**31  # in place of the step in the key of random numbers; no training has that many steps


def held_out(settings: TrainerSettings) -> list[Task]:
    """Return the tasks of an evaluation: held-out prompts in the mix of the training, drawn from SEED.

    A small pool's prompts repeat, with other random numbers, after each was used once. Raises SettingsError.
    """
    return heldout_tasks(settings, SEED, settings.evaluate.prompts)


def evaluate(
    policy: Policy, service: RewardBackend, tasks: Sequence[Task], settings: TrainerSettings, what: str = "held-out"
) -> Evaluation:
    """Draw one image for each task and score it; the service scores while the next batch is drawn.

    An image gets its reward, and the scores by the scorers that are not trained on. The random numbers of a task follow
    from SEED and its index, so two policies get the same ones. A missing score is None. `what` names the progress bar.
    Raises RewardServiceUnavailable and InvalidRequest.
    """
    answers: list[str] = []
    pending: list[tuple[list[int], Future[list[Reward]]]] = []
    untrained: list[tuple[list[int], Future[list[Reward]]]] = []
    shown: list[Pixels] = []
    batch, scorers = settings.screen.preview_batch_size, settings.evaluate.scorers
    with tqdm(total=len(tasks), desc=what, unit="image") as bar, torch.no_grad():
        for first in range(0, len(tasks), batch):
            places = range(first, min(first + batch, len(tasks)))
            rollouts, images = draw(policy, tasks, places)
            answers += [rollout.answer for rollout in rollouts]
            shown += images[: max(0, SHOWN - len(shown))]
            pending += _submit(service, tasks, rollouts, images)
            if scorers:
                untrained += _submit(service, tasks, rollouts, images, RewardSpec(scorers))
            for _, future in (*pending, *untrained):
                if future.done():
                    future.result()  # an unavailable service ends the evaluation now, not after the last image
            bar.update(len(places))
        rewards, others = _results(pending), _results(untrained)
    rows = tuple(_row(task, answers[i], rewards[i], others.get(i, Reward(None))) for i, task in enumerate(tasks))
    return Evaluation(conditions(settings), rows, tuple(shown))


def conditions(settings: TrainerSettings) -> dict[str, Any]:
    """Return the settings that two comparable evaluations share, as JSON values."""
    return {
        "data": settings.data.model_dump(mode="json", include={"task", "geneval_share"}),
        "prompts": None if settings.data.heldout is None else file_digest(settings.data.heldout),
        "policy": settings.policy.model_dump(mode="json", exclude={"checkpointing"}),
        "rewards": settings.rewards.model_dump(mode="json", include={"scorers", "ensemble"}),
        "scorers": dict(settings.evaluate.scorers),
    }


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the rows to `path` as JSON and the images to a directory of the same name."""
    write_images(path.with_suffix(""), "image", evaluation.images)
    document = {"conditions": evaluation.conditions, "rows": [asdict(row) for row in evaluation.rows]}
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def load_evaluation(path: Path) -> Evaluation:
    """Read the rows that `save_evaluation` wrote; the images stay in their files.

    Raises FileNotFoundError, or SettingsError for a file that is not an evaluation.
    """
    try:
        document = json.loads(path.read_text())
        return Evaluation(document["conditions"], tuple(Row(**row) for row in document["rows"]))
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} is not an evaluation ({error!r}); remove it to evaluate again") from None


def evaluations(run_dir: Path) -> list[Path]:
    """Return the files of a run's evaluations in order: before training, during it (step-000050.json), after it."""
    during = sorted(run_dir.glob("evaluation/step-*.json"))
    return [path for path in (run_dir / BEFORE, *during, run_dir / AFTER) if path.exists()]


def step_of(path: Path) -> int | None:
    """Return after how many steps the evaluation in this file was made; None after training."""
    return 0 if path.stem == "before" else None if path.stem == "after" else int(path.stem.removeprefix("step-"))


def image_files(path: Path) -> list[Path]:
    """Return the image files of the evaluation at `path`; they belong to its first rows, in order."""
    return sorted(path.with_suffix("").glob("image-*.png"))


def draw(policy: Policy, tasks: Sequence[Task], places: range) -> tuple[list[Rollout], list[Pixels]]:
    """Return a finished rollout and its image for each of `places` in `tasks`; each has its own answer."""
    chosen = [tasks[place] for place in places]
    begun = start(policy, chosen, [(SEED, _HELD_OUT, place) for place in places], Clock())
    rollouts = continue_images(policy, begun, policy.image_steps)
    return rollouts, policy.images([rollout.image for rollout in rollouts])


def _submit(
    service: RewardBackend,
    tasks: Sequence[Task],
    rollouts: Sequence[Rollout],
    images: Sequence[Pixels],
    spec: RewardSpec | None = None,
) -> list[tuple[list[int], Future[list[Reward]]]]:
    """Send one request for each reward: the tasks' own, or `spec` for all."""
    by_reward: list[tuple[RewardSpec, list[int], list[ScoreItem]]] = []
    for rollout, image in zip(rollouts, images, strict=True):
        task = tasks[rollout.index]
        wanted = spec or task.reward
        if all(wanted != reward for reward, _, _ in by_reward):
            by_reward.append((wanted, [], []))
        _, places, items = next(one for one in by_reward if one[0] == wanted)
        places.append(rollout.index)
        items += reward_items(task, [rollout], [image])
    return [(places, service.submit(items, reward)) for reward, places, items in by_reward]


def _results(pending: Sequence[tuple[list[int], Future[list[Reward]]]]) -> dict[int, Reward]:
    """Wait for the rewards; return them by the task's index."""
    return {i: reward for chosen, future in pending for i, reward in zip(chosen, future.result(), strict=True)}


def _row(task: Task, answer: str, reward: Reward, untrained: Reward) -> Row:
    return Row(
        key=task.key,
        pathway=task.pathway,
        tag=task.prompt.tag,
        prompt=task.prompt.text,
        answer=answer,
        reward=reward.value,
        components=dict(reward.components),
        right=right(answer, task.segments, task.truth),
        failure=None if reward.failure is None else reward.failure.code,
        heldout=dict(untrained.components),
        heldout_reward=untrained.value,
    )
