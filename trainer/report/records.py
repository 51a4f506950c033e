"""The records of a step: its metrics, its images, and the group whose loss was not finite."""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import NonFinite
from trainer.groups import ScoredGroup
from trainer.optim import lr_factor
from trainer.report.metrics import Metrics, Sample, save_samples, steps_saved
from trainer.settings import TrainerSettings
from trainer.types import MODALITIES, Modality, Reward
from trainer.update import Update

Record = dict[str, Any]
Lap = Mapping[str, float]  # the seconds of each phase of a step
REJECTED_SHOWN = 8  # previews of each group


def step_record(
    groups: Sequence[ScoredGroup],
    replaced: int,
    update: Update,
    settings: TrainerSettings,
    step: int,
    laps: Sequence[Lap],
    audit: Record,
) -> Record:
    """Return the step's line of metrics.jsonl; None stands for a missing measurement.

    `denoising_steps_saved_ratio` is the share of denoising steps that screening saved, against finishing every
    preview. `dropped` counts previews that were drawn ahead of scores and not needed; it depends on when the scores
    arrived, and no other figure counts them. `pass_rate` counts previews with a score, `masked` the finished images
    without a reward, `flat` the groups whose rewards are all equal, and `replaced` the flat groups that others
    replaced, which no other figure counts. `kl_image_by_step` is the mean KL of each sampling step of an image that has
    decisions, in order (of a flow policy its SDE steps), None for one that `loss_step_fraction` left out, and None in
    all without a KL term. `reply_length` is the mean number of characters of the answers, and `text_cut` counts the
    kept rollouts with a prompt of an image that the policy did not read to its end. `lr` is that of parameters without
    a rate of their modality. `laps` are those of every rank; `seconds` is rank 0's. `audit` has the figures of the
    screen's audit up to this step.
    """
    found = [reward for group in groups for reward in group.rewards]
    values = [reward.value for reward in found if reward.value is not None]
    names = sorted({name for reward in found for name in reward.components})
    drawn = sum(group.previews.screened.drawn for group in groups)
    num_scored = sum(group.previews.screened.num_scored for group in groups)
    totals = [len(g.previews.task.draws) * settings.policy.image_steps for g in groups]
    done = sum(
        g.previews.screened.drawn * g.previews.step
        + (len(g.rewards) + len(g.previews.audited)) * (total - g.previews.step)
        for g, total in zip(groups, totals, strict=True)
    )
    unscreened = sum(g.previews.screened.drawn * total for g, total in zip(groups, totals, strict=True))
    steps = {"denoising_steps": done, "denoising_steps_unscreened": unscreened}
    return {
        "pathways": [group.previews.task.pathway for group in groups],
        "keys": [group.previews.task.key for group in groups],
        "prompts": [group.previews.task.prompt.text for group in groups],
        "reward_mean": _mean(values),
        "reward_std": _mean([statistics.pstdev(v) for g in groups if len(v := _values(g.rewards)) > 1]),
        "components": {name: _mean([r.components[name] for r in found if name in r.components]) for name in names},
        **{
            f"{name}_{modality}": value
            for modality in MODALITIES
            for name, value in _modality_figures(update, modality).items()
        },
        "kl_image_by_step": update.stats["image"].kl_by_step or None,
        "grad_norm": update.grad_norm,
        "lr": settings.optimizer.lr * lr_factor(settings.optimizer, step, settings.steps),
        "previews": drawn,
        "dropped": sum(group.previews.dropped for group in groups),
        "kept": len(found),
        "pass_rate": sum(group.previews.screened.passed for group in groups) / num_scored if num_scored else None,
        "threshold": _mean([g.previews.threshold for g in groups if g.previews.threshold is not None]),
        "capped": sum(group.previews.capped for group in groups),
        "masked": len(found) - len(values),
        "reply_length": _mean([float(len(answer)) for g in groups if g.previews.task.query for answer in g.answers]),
        "text_cut": sum(group.text_cut for group in groups),
        "skipped": update.skipped,
        "flat": update.flat,
        "replaced": replaced,
        **steps,
        "denoising_steps_saved_ratio": steps_saved([steps]),
        **audit,
        "seconds": _rounded(laps[0]),
        "ranks": ranks_record(laps),
        "max_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def ranks_record(laps: Sequence[Lap]) -> Record | None:
    """Return how several ranks shared the time of a step; None for one rank.

    world       the number of ranks
    wait_share  the share of the time that a rank waited for the slowest one, mean over the ranks
    slowest     the rank that waited least
    seconds     its seconds in each phase

    Waiting while rank 0 alone writes is left out. In the update of a split policy it cannot be separated from messages,
    so then it is that of drawing.
    """
    if len(laps) == 1:
        return None
    waits = [lap.get("ranks", 0.0) for lap in laps]
    slowest = waits.index(min(waits))
    share = sum(waits) / sum(lap["total"] for lap in laps)
    return {
        "world": len(laps),
        "wait_share": round(share, 4),
        "slowest": slowest,
        "seconds": _rounded(laps[slowest]),
    }


def log_images(metrics: Metrics | None, run_dir: Path, step: int, groups: Sequence[ScoredGroup]) -> None:
    """Record each group's finished images, with rewards and answers, and its previews.

    Each rank writes the image files of the groups that it drew. Rank 0, which has the metrics, records all groups.
    """
    for index, group in enumerate(groups):
        if metrics is not None:
            task = group.previews.task
            title, has_images = f"{task.key}: {task.prompt.text}", bool(task.draws)
            metrics.log_samples(step, index, title, _samples(group), has_images=has_images)
        elif group.is_ours:
            save_samples(run_dir, step, index, _samples(group))


def _samples(group: ScoredGroup) -> dict[str, list[Sample]]:
    """Return a group's images by kind; without images if another rank drew it."""
    previews = group.previews
    kept = previews.screened.indices
    rejected = [i for i in range(len(previews.scores)) if i not in set(kept)][:REJECTED_SHOWN]
    previewed = previews.images or [None] * len(previews.scores)
    images = group.images if group.is_ours else [None] * len(group.rewards)
    drawn = [Sample(image, score) for image, score in zip(previewed, previews.scores, strict=True)]
    finished = [
        Sample(image, reward.value, answer, reward.components, reward.tokens)
        for image, reward, answer in zip(images, group.rewards, group.answers, strict=True)
    ]
    samples = {"finished": finished}
    if previews.step and any(score is not None for score in previews.scores):  # without a screen nothing scored them
        samples |= {"previews": [drawn[i] for i in kept], "rejected": [drawn[i] for i in rejected]}
    return samples


def save_failed_groups(
    run_dir: Path, step: int, groups: Sequence[ScoredGroup], error: NonFinite, rank: int = 0
) -> Path:
    """Write the group with the non-finite loss (all groups for a gradient) to run_dir/failed/step-N; return that."""
    folder = run_dir / "failed" / (f"step-{step:06d}" + (f"-rank{rank}" if rank else ""))
    folder.mkdir(parents=True, exist_ok=True)
    chosen = range(len(groups)) if error.group is None else [error.group]
    tensors: dict[str, Tensor] = {}
    for g in chosen:
        for rollout in groups[g].rollouts:
            for place, segment in enumerate(rollout.segments):
                for field in getattr(segment, "__slots__", ()):
                    if isinstance(value := getattr(segment, field), Tensor):
                        name = f"group{g}.rollout{rollout.index}.{place}-{segment.kind}.{field}"
                        tensors[name] = value.contiguous().clone()
    save_file(tensors, folder / "rollouts.safetensors")
    document = [
        {
            "prompt": groups[g].previews.task.prompt.text,
            "key": groups[g].previews.task.key,
            "rollouts": [
                {"place": r.index, "answer": r.answer, "prompt": r.segments[-1].prompt} for r in groups[g].rollouts
            ],
            "rewards": [{"value": r.value, "components": dict(r.components)} for r in groups[g].rewards],
        }
        for g in chosen
    ]
    (folder / "groups.json").write_text(json.dumps({"error": str(error), "step": step, "groups": document}, indent=1))
    return folder


def _modality_figures(update: Update, modality: Modality) -> dict[str, float | None]:
    stats = update.stats[modality]
    loss = update.losses[modality] if stats.decisions else None
    return {
        "advantage_abs": update.advantage_abs[modality],
        "gradient_cosine": update.cosines[modality],
        "loss": loss,
        "kl": stats.kl,
        "clip_fraction": stats.clip_fraction,
        "ratio_min": stats.ratio_min,
        "ratio_max": stats.ratio_max,
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(spent, 4) for phase, spent in seconds.items()}


def _values(rewards: Sequence[Reward]) -> list[float]:
    return [reward.value for reward in rewards if reward.value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
