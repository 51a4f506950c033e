"""One run: create policy and service, evaluate, train, evaluate again, save model and page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing

from tqdm import tqdm

from trainer import checkpoint
from trainer.algorithms.threshold import make_controller
from trainer.data.concepts import concept_names
from trainer.data.source import wanted_rewards
from trainer.devices import check_devices, device_name
from trainer.distributed import Ranks, device, joined
from trainer.evaluate.during import HeldOut
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.processes import processes
from trainer.report.page import write_report
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.run_dir import check_shared, run_lock
from trainer.screen_audit import audit_line
from trainer.settings import TrainerSettings
from trainer.train import train


def run(settings: TrainerSettings, *, evaluated: bool = True) -> int:
    """Train until the run ends or is stopped, and return the exit status 0.

    Under a launcher such as torchrun every process calls this; rank 0 writes the run's files. `evaluated` False leaves
    out the held-out evaluations. Raises SettingsError, and what `train` raises.
    """
    processes(os.environ)
    with joined() as ranks, ExitStack() as held:
        with ranks.together():
            settings.check_ranks(ranks.world)
            token = held.enter_context(run_lock(settings.run_dir)) if ranks.is_first else None
        check_shared(settings.run_dir, token, ranks)
        log = tqdm.write if ranks.is_first else _silent
        warning = check_devices(ranks.gather_all(device_name()))
        with ranks.together():
            before = checkpoint.check(settings.run_dir / "checkpoints", settings)  # before anything is drawn
            wanted = wanted_rewards(settings)  # reads the prompts: a mistake there is found before a model is loaded
            if ranks.is_first:
                _write_settings(settings)
        if warning:
            log(warning)
        if before not in (None, ranks.world):
            log(f"resuming on {ranks.world} rank{'s' * (ranks.world > 1)}; the checkpoint was written on {before}")
        with ranks.together():
            policy = make_policy(settings)
        return _run(settings, policy, wanted, ranks, evaluated=evaluated)


def _run(settings: TrainerSettings, policy: Policy, wanted: Sequence[Wanted], ranks: Ranks, *, evaluated: bool) -> int:
    log = tqdm.write if ranks.is_first else _silent
    if evaluated and settings.data.heldout is None:
        log("[trainer.data] names no held-out prompts: nothing is evaluated before and after training")
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    with closing(RewardService(settings.rewards, log=log)) as service:
        with ranks.together():
            service.wait_ready()
            service.check_served(wanted)
        held_out = None
        if evaluated and settings.data.heldout is not None:
            held_out = HeldOut(settings, service, log, ranks)
            held_out.before(policy)
        state = train(settings, policy, service, controller, log, held_out, ranks)
        is_over = held_out is not None and held_out.is_over(state.step)
        if state.step >= settings.steps or is_over:
            with state.averaged():
                if held_out:
                    held_out.after(policy, state.step)
                with ranks.together():
                    if ranks.is_first:
                        policy.save(settings.run_dir / "policy")
        else:
            log(f"stopped after step {state.step} of {settings.steps}; the same command resumes the run")
        if (audit := audit_line(state.audits, state.costs)) is not None:
            log(audit)
        if ranks.is_first:
            log(f"wrote {write_report(settings.run_dir)}")
    return 0


def _write_settings(settings: TrainerSettings) -> None:
    text = json.dumps(settings.model_dump(mode="json"), indent=2)
    (settings.run_dir / "settings.json").write_text(text + "\n")


def _silent(message: str) -> None:
    """Rank 0 has said it."""


def make_policy(settings: TrainerSettings) -> Policy:
    """Load the policy of the settings, onto a GPU if there is one, with its reference if a KL term needs that."""
    policy = registry.load(settings.policy, settings.seed, concept_names(settings.data))
    policy.to(device())
    if settings.loss.needs_reference:
        policy.keep_reference()
    return policy
