"""One run: create policy and service, evaluate, train, evaluate again, save model and page."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from tqdm import tqdm

from synod.errors import SettingsError
from trainer import checkpoint
from trainer.agreement import check_settings
from trainer.algorithms.threshold import make_controller
from trainer.clock import Clock
from trainer.data.concepts import concept_names, read_concepts
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import wanted_rewards
from trainer.devices import check_devices, device_name, layout
from trainer.distributed import PATIENCE, Ranks, device, joined
from trainer.evaluate.during import HeldOut
from trainer.personalize.files import save_concepts
from trainer.personalize.tokens import check_prompts
from trainer.policy import registry
from trainer.policy.base import Policy
from trainer.policy.show_o.policy import ShowO
from trainer.processes import processes
from trainer.report.page import write_report
from trainer.rewards.intrinsic import with_intrinsic
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.run_dir import RESTART_S, check_shared, run_lock
from trainer.screen_audit import audit_line
from trainer.screen_auto import auto_line
from trainer.settings import SyncR1Settings, TrainerSettings
from trainer.stop import STOP_FILE
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
            _check_patience(settings, ranks.world)
            token = held.enter_context(_run_lock(settings)) if ranks.is_first else None
        check_shared(settings.run_dir, token, ranks)
        check_settings(settings, ranks)
        log = tqdm.write if ranks.is_first else _silent
        places = ranks.gather_all([socket.gethostname(), device_name()])
        warning = check_devices([name for _, name in places])
        if ranks.world > 1:
            log(f"training on {ranks.world} ranks: {layout(places)}")
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
    with closing(RewardService(settings.rewards, log=_log_of(ranks))) as service:
        with ranks.together():
            if wanted:
                service.wait_ready()
                service.check_served(wanted)
            rewards = with_intrinsic(service, policy, settings, ranks.clock)
        held_out = None
        if evaluated and settings.data.heldout is not None:
            reader = with_intrinsic(service, policy, settings, Clock())  # its time is part of the phase "evaluate"
            held_out = HeldOut(settings, reader, log, ranks)
            held_out.before(policy)
        state = train(settings, policy, rewards, controller, log, held_out, ranks)
        is_over = held_out is not None and held_out.is_over(state.step)
        if state.step >= settings.steps or is_over:
            with state.averaged():
                if held_out:
                    held_out.after(policy, state.step)
                with ranks.together():
                    if ranks.is_first:
                        policy.save(settings.run_dir / "policy")
                        save_concepts(policy, settings.policy, settings.run_dir / "concepts")
        else:
            log(f"stopped after step {state.step} of {settings.steps}; the same command resumes the run")
        lines = audit_line(state.audits, state.costs), auto_line(state.screens, state.costs, settings)
        for line in filter(None, lines):
            log(line)
        if ranks.is_first:
            log(f"wrote {write_report(settings.run_dir)}")
    return 0


@contextmanager
def _run_lock(settings: TrainerSettings) -> Iterator[str]:
    """Hold the run's directory, and remove the stop file of a launcher that was killed.

    Workers of Ray Train wait for the lock of a rank 0 that was killed, and their launcher removes the file.
    """
    has_workers = settings.ranks.workers > 0
    with run_lock(settings.run_dir, patience_s=RESTART_S if has_workers else 0.0) as token:
        if not has_workers:
            (settings.run_dir / STOP_FILE).unlink(missing_ok=True)
        yield token


def _check_patience(settings: TrainerSettings, world: int) -> None:
    limit = PATIENCE.total_seconds()
    if world > 1 and settings.rewards.patience_s >= limit:
        raise SettingsError(
            f"[trainer.rewards] patience_s = {settings.rewards.patience_s:g}: a rank waits for the others for "
            f"{limit:g} s; with several ranks give less than that"
        )


def _log_of(ranks: Ranks) -> Callable[[str], None]:
    """Return the log of what may happen to one rank alone: that of rank 0, or with the rank's number."""
    return tqdm.write if ranks.is_first else lambda message: tqdm.write(f"rank {ranks.rank}: {message}")


def _write_settings(settings: TrainerSettings) -> None:
    text = json.dumps(settings.model_dump(mode="json"), indent=2)
    (settings.run_dir / "settings.json").write_text(text + "\n")


def _silent(message: str) -> None:
    """Rank 0 has said it."""


def make_policy(settings: TrainerSettings) -> Policy:
    """Load the policy of the settings, onto a GPU if there is one, with its reference if they need that."""
    policy = registry.load(settings.policy, settings.seed, concept_names(settings.data))
    _check_prompts(policy, settings)
    policy.to(device())
    if settings.needs_reference:
        policy.keep_reference()
    return policy


def _check_prompts(policy: Policy, settings: TrainerSettings) -> None:
    """Raise SettingsError if a prompt of a personalised concept does not fit the policy's text block by itself."""
    if not isinstance(policy, ShowO) or not policy.vocab.personal or not isinstance(settings.data, SyncR1Settings):
        return
    concepts = read_concepts(settings.data.concepts)
    prompts = [
        prompt.text
        for path in (settings.data.prompts, settings.data.heldout)
        for prompt in read_concept_prompts(path, concepts)
    ]
    check_prompts(policy.vocab, prompts)
