"""One run: create policy and service, evaluate, train, evaluate again, save model and page."""

from __future__ import annotations

import json
from contextlib import closing

import torch
from tqdm import tqdm

from synod.errors import SettingsError
from trainer.algorithms.threshold import make_controller
from trainer.data.concepts import concept_names
from trainer.data.source import wanted_rewards
from trainer.evaluate.during import HeldOut
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.report.page import write_report
from trainer.rewards.service import RewardService
from trainer.settings import TrainerSettings
from trainer.train import train


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
        held_out = HeldOut(settings, service, tqdm.write) if evaluated else None
        if held_out:
            held_out.before(policy)
        controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
        state = train(settings, policy, service, controller, held_out=held_out)
        if state.step >= settings.steps or (held_out and held_out.is_over(state.step)):
            with state.averaged():
                if held_out:
                    held_out.after(policy, state.step)
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
