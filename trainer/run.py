"""One run: create policy and service, evaluate, train, evaluate again, save model and page."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from tqdm import tqdm

from synod.errors import SettingsError
from trainer import checkpoint
from trainer.algorithms.threshold import make_controller
from trainer.data.concepts import concept_names
from trainer.data.source import wanted_rewards
from trainer.distributed import Ranks, device, joined
from trainer.evaluate.during import HeldOut
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.report.page import write_report
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.settings import TrainerSettings
from trainer.train import train

LOCK: Final = ".lock"  # of the process that writes the directory; the system releases it when that ends


def run(settings: TrainerSettings, *, evaluated: bool = True) -> int:
    """Train until the run ends or is stopped, and return the exit status 0.

    Under a launcher such as torchrun every process calls this; rank 0 writes the run's files. `evaluated` False leaves
    out the held-out evaluations. Raises SettingsError, and what `train` raises.
    """
    with joined() as ranks, run_lock(settings.run_dir) if ranks.is_first else nullcontext():
        with ranks.together():
            _check(settings, ranks)
            checkpoint.check(settings.run_dir / "checkpoints", settings)  # before anything is written or drawn
            wanted = wanted_rewards(settings)  # reads the prompts: a mistake there is found before a model is loaded
            if ranks.is_first:
                _write_settings(settings)
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
                if ranks.is_first:
                    policy.save(settings.run_dir / "policy")
        else:
            log(f"stopped after step {state.step} of {settings.steps}; the same command resumes the run")
        if ranks.is_first:
            log(f"wrote {write_report(settings.run_dir)}")
    return 0


def _check(settings: TrainerSettings, ranks: Ranks) -> None:
    """Raise SettingsError for ranks that would have no group to draw."""
    if ranks.world > settings.prompts_per_step:
        raise SettingsError(
            f"{ranks.world} ranks share the groups of a step, but [trainer] prompts_per_step is "
            f"{settings.prompts_per_step}; give at least {ranks.world}, or start fewer ranks"
        )


def _write_settings(settings: TrainerSettings) -> None:
    text = json.dumps(settings.model_dump(mode="json"), indent=2)
    (settings.run_dir / "settings.json").write_text(text + "\n")


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Create the run's directory and hold it alone. Raises SettingsError if it cannot be, or another run has it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("w")
    except OSError as error:
        raise SettingsError(f"[trainer] run_dir = {run_dir}: {error.strerror}; give a directory to write to") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"[trainer] run_dir = {run_dir}: another training uses it; give this one a directory of its own, or "
                "stop the other"
            ) from None
        yield


def _silent(message: str) -> None:
    """Rank 0 has said it."""


def make_policy(settings: TrainerSettings) -> Policy:
    """Load the policy of the settings, onto a GPU if there is one, with its reference if a KL term needs that."""
    policy = registry.load(settings.policy, settings.seed, concept_names(settings.data))
    policy.to(device())
    if settings.loss.needs_reference:
        policy.keep_reference()
    return policy
