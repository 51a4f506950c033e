"""Held-out evaluation: the same prompts and random numbers before and after training.

`trainer.evaluate.compare` compares two evaluations pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from synod.contracts import Pixels
from synod.errors import SettingsError
from trainer.checkpoint import contents, file_digest
from trainer.clock import Clock
from trainer.data.source import heldout_tasks
from trainer.distributed import ONE_RANK, Ranks
from trainer.evaluate.compare import Evaluation, Row, right
from trainer.images import write_images, write_whole
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.rewards.terms import Items, submit_terms
from trainer.sampling import result_items
from trainer.scenarios import element
from trainer.settings import TrainerSettings
from trainer.turns import finish_turns, start
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
    policy: Policy,
    service: RewardBackend,
    tasks: Sequence[Task],
    settings: TrainerSettings,
    what: str = "held-out",
    ranks: Ranks = ONE_RANK,
) -> Evaluation:
    """Draw one image for each task and score it; the service scores while the next batch is drawn.

    An image gets its reward, and the scores by the scorers that are not trained on. The random numbers of a task follow
    from SEED and its index, so two policies get the same ones. A missing score is None. `what` names the progress bar.
    Rank r of W draws the batches r, r + W, ...: rounding depends on a batch's size, and so the rows are bit for bit
    those of one rank. Raises RewardServiceUnavailable and InvalidRequest, on every other rank OtherRankFailed.
    """
    size = settings.screen.preview_batch_size
    batches = [range(first, min(first + size, len(tasks))) for first in range(0, len(tasks), size)]
    with ranks.together():
        own = [batches[i] for i in ranks.mine(len(batches))]
        bar = tqdm(total=sum(map(len, own)), desc=what, unit="image", disable=not ranks.is_first)
        with bar, torch.no_grad():
            rows, shown = _evaluate_batches(policy, service, tasks, own, settings.evaluate.scorers, bar)
        alike = conditions(settings)  # reads a file
    documents = ranks.gather([[asdict(rows[place]) for place in places] for places in own])
    return Evaluation(alike, tuple(Row(**row) for batch in documents for row in batch), shown)


def _evaluate_batches(
    policy: Policy,
    service: RewardBackend,
    tasks: Sequence[Task],
    batches: Sequence[range],
    scorers: Mapping[str, float],
    bar: tqdm[Any],
) -> tuple[dict[int, Row], dict[int, Pixels]]:
    """Return the rows of these batches, and the images of those among the first SHOWN, by the task's index."""
    answers: dict[int, str] = {}
    shown: dict[int, Pixels] = {}
    pending: list[tuple[list[int], Future[list[Reward]]]] = []
    untrained: list[tuple[list[int], Future[list[Reward]]]] = []
    for places in batches:
        rollouts, images = draw(policy, tasks, places)
        answers |= {rollout.index: rollout.answer for rollout in rollouts}
        shown |= {place: drawn[0] for place, drawn in zip(places, images, strict=True) if drawn and place < SHOWN}
        pending += _submit(service, tasks, rollouts, images)
        if scorers:
            untrained += _submit(service, tasks, rollouts, images, RewardSpec(scorers))
        for _, future in (*pending, *untrained):
            if future.done():
                future.result()  # an unavailable service ends the evaluation now, not after the last image
        bar.update(len(places))
    rewards, others = _results(pending), _results(untrained)
    missing = Reward(None)
    rows = {i: _row(tasks[i], answer, rewards[i], others.get(i, missing)) for i, answer in answers.items()}
    return rows, shown


def conditions(settings: TrainerSettings) -> dict[str, Any]:
    """Return the settings that two comparable evaluations share, as JSON values."""
    query = getattr(settings.data, "query", None)
    policy = contents(settings.policy)
    del policy["checkpointing"]
    return {
        "data": settings.data.model_dump(mode="json", include={"task", "geneval_share", "pathways", "textual_template"})
        | ({} if query is None else {"query": query}),
        "prompts": None if settings.data.heldout is None else file_digest(settings.data.heldout),
        "policy": policy,
        "rewards": settings.rewards.model_dump(mode="json", include={"scorers", "terms", "ensemble", "teacher"}),
        "scorers": dict(settings.evaluate.scorers),
    }


def save_evaluation(path: Path, evaluation: Evaluation, ranks: Ranks = ONE_RANK) -> None:
    """Write the rows to `path` as JSON and the images to a directory of the same name.

    Every rank writes its images, then rank 0 the rows, so that a file with rows has its images.
    """
    with ranks.together():
        write_images(path.with_suffix(""), "image", evaluation.images)
    with ranks.together():
        if ranks.is_first:
            write_whole(path, (json.dumps(to_document(evaluation), indent=1, allow_nan=False) + "\n").encode())


def to_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return conditions and rows as a JSON value."""
    return {"conditions": evaluation.conditions, "rows": [asdict(row) for row in evaluation.rows]}


def from_document(document: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation of `to_document`, without images."""
    return Evaluation(document["conditions"], tuple(Row(**row) for row in document["rows"]))


def load_evaluation(path: Path) -> Evaluation:
    """Read the rows that `save_evaluation` wrote; the images stay in their files.

    Raises FileNotFoundError, or SettingsError for a file that is not an evaluation.
    """
    try:
        return from_document(json.loads(path.read_text()))
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


def draw(policy: Policy, tasks: Sequence[Task], places: range) -> tuple[list[Rollout], list[tuple[Pixels, ...]]]:
    """Return a finished rollout and its images for each of `places` in `tasks`; each has its own answer."""
    chosen = [tasks[place] for place in places]
    with policy.evaluating():
        begun = start(policy, chosen, [(SEED, _HELD_OUT, place) for place in places], Clock())
        return finish_turns(policy, chosen, begun, Clock())


def _submit(
    service: RewardBackend,
    tasks: Sequence[Task],
    rollouts: Sequence[Rollout],
    images: Sequence[Sequence[Pixels]],
    spec: RewardSpec | None = None,
) -> list[tuple[list[int], Future[list[Reward]]]]:
    """Send one request for each reward: the tasks' own, or `spec` for all."""
    by_reward: list[tuple[RewardSpec, list[int], list[Items]]] = []
    for rollout, drawn in zip(rollouts, images, strict=True):
        task = tasks[rollout.index]
        wanted = spec or task.reward
        if all(wanted != reward for reward, _, _ in by_reward):
            by_reward.append((wanted, [], []))
        _, places, items = next(one for one in by_reward if one[0] == wanted)
        places.append(rollout.index)
        items.append(result_items(task, rollout, drawn))
    return [(places, submit_terms(service, items, reward)) for reward, places, items in by_reward]


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
        right=right(element(answer), task.segments, task.truth),
        failure=None if reward.failure is None else reward.failure.code,
        heldout=dict(untrained.components),
        heldout_reward=untrained.value,
        image_part=reward.image_part,
        official=reward.official,
    )
