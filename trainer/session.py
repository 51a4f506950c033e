"""One run from its settings: load the policy, meet the service, evaluate, train, evaluate, keep model and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

import torch
from tqdm import tqdm

from synod.errors import SettingsError
from trainer.evaluate import conditions, evaluate, held_out, load_evaluation, save_evaluation
from trainer.grpo.threshold import CONTROLLERS, ThresholdController
from trainer.policy import show_o
from trainer.policy.base import Policy
from trainer.report import write_report
from trainer.rewards import RewardService
from trainer.rollout import Rewards
from trainer.settings import ScreenSettings, TrainerSettings
from trainer.train import train

BEFORE, AFTER = "evaluation/before.json", "evaluation/after.json"


def run(
    settings: TrainerSettings,
    *,
    evaluated: bool = True,
    between: Callable[[Rewards], Rewards] = lambda service: service,
) -> int:
    """Train one run to its end, or to where it is stopped; returns the exit status 0. Raises what `train` raises.

    `between` puts something between the training and the service, for experiments; evaluations meet the service itself.
    """
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        told = settings.model_dump(mode="json")
        (settings.run_dir / "settings.json").write_text(json.dumps(told, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(
            f"[trainer] run_dir = {settings.run_dir}: {error.strerror}; give a directory to write to"
        ) from None
    policy, reference = make_policy(settings), None
    if settings.loss.beta:
        reference = make_policy(settings)
        reference.module.requires_grad_(False)
    with closing(RewardService(settings.service, say=tqdm.write)) as service:
        service.wait_ready()
        if evaluated and not _kept(settings, BEFORE):
            _measure(policy, service, settings, BEFORE)
        state = train(settings, policy, reference, between(service), make_controller(settings.screen))
        if state.step >= settings.steps:
            if evaluated:
                _measure(policy, service, settings, AFTER)
            policy.save(settings.run_dir / "policy")
    tqdm.write(f"wrote {write_report(settings.run_dir)}")
    return 0


def make_policy(settings: TrainerSettings) -> show_o.ShowO:
    """The policy of the settings, on a GPU where there is one."""
    chosen, sampler = settings.policy, settings.sampler
    policy = show_o.load(
        chosen.model,
        vq=chosen.vq,
        tokenizer=chosen.tokenizer,
        guidance_scale=sampler.guidance_scale,
        temperature=sampler.temperature,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy.module.to(device)
    policy.vq.to(device)
    return policy


def make_controller(settings: ScreenSettings) -> ThresholdController:
    """The threshold law of the settings."""
    return CONTROLLERS[settings.threshold.name](**settings.threshold.model_dump(exclude={"name"}))


def _kept(settings: TrainerSettings, file: str) -> bool:
    """Whether the run has that evaluation, as it would be made today."""
    path = settings.run_dir / file
    if not path.exists():
        return False
    found = load_evaluation(path)
    return found.conditions == conditions(settings) and len(found.rows) == settings.evaluate.prompts


def _measure(policy: Policy, service: RewardService, settings: TrainerSettings, file: str) -> None:
    path = settings.run_dir / file
    path.parent.mkdir(exist_ok=True)
    save_evaluation(path, evaluate(policy, service, held_out(settings), settings, f"held-out prompts {path.stem}"))
