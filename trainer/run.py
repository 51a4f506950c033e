"""One run: create policy and service, evaluate, train, evaluate again, save model and page."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from synod.errors import SettingsError
from trainer.algorithms.threshold import make_controller
from trainer.data.concepts import concept_names
from trainer.data.source import wanted_rewards
from trainer.evaluate.heldout import conditions, evaluate, held_out, load_evaluation, save_evaluation
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.report.page import write_report
from trainer.rewards.service import RewardService
from trainer.settings import TrainerSettings
from trainer.train import train

BEFORE, AFTER = "evaluation/before.json", "evaluation/after.json"


def run(settings: TrainerSettings, *, evaluated: bool = True) -> int:
    """Train until the run ends or is stopped, and return the exit status 0.

    `evaluated` False leaves out the held-out evaluations. Raises SettingsError, and what `train` raises.
    """
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings.model_dump(mode="json"), indent=2)
        (settings.run_dir / "settings.json").write_text(text + "\n")
    except OSError as error:
        raise SettingsError(
            f"[trainer] run_dir = {settings.run_dir}: {error.strerror}; give a directory to write to"
        ) from None
    wanted = wanted_rewards(settings)  # reads the prompts: a mistake there is found before a model is loaded
    policy = make_policy(settings)
    if evaluated and settings.data.heldout is None:
        tqdm.write("[trainer.data] names no held-out prompts: nothing is evaluated before and after training")
        evaluated = False
    with closing(RewardService(settings.rewards, log=tqdm.write)) as service:
        service.wait_ready()
        service.check_served(wanted)
        before, after = settings.run_dir / BEFORE, settings.run_dir / AFTER
        if evaluated and not _is_current(before, settings):
            _evaluate(policy, service, settings, before)
        controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
        state = train(settings, policy, service, controller)
        if state.step >= settings.steps:
            with state.averaged():
                if evaluated:
                    _evaluate(policy, service, settings, after)
                policy.save(settings.run_dir / "policy")
    tqdm.write(f"wrote {write_report(settings.run_dir)}")
    return 0


def make_policy(settings: TrainerSettings) -> Policy:
    """Load the policy of the settings, onto a GPU if there is one, with its reference if a KL term needs that."""
    policy = registry.load(settings.policy, settings.seed, concept_names(settings.data))
    policy.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if settings.loss.needs_reference:
        policy.keep_reference()
    return policy


def _is_current(path: Path, settings: TrainerSettings) -> bool:
    """Return whether `path` holds the evaluation that these settings would make."""
    if not path.exists():
        return False
    found = load_evaluation(path)
    return found.conditions == conditions(settings) and len(found.rows) == settings.evaluation_prompts


def _evaluate(policy: Policy, service: RewardService, settings: TrainerSettings, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_evaluation(path, evaluate(policy, service, held_out(settings), settings, f"held-out prompts {path.stem}"))
