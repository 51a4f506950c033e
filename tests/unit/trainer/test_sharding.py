"""A policy split over two ranks trains as a whole one, and its files are those of a whole one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessRaisedException

from synod.errors import SettingsError
from tests.unit.trainer.gaussian_policy import GaussianPolicy
from tests.unit.trainer.loops import MakeSettings
from tests.unit.trainer.world_two import STEPS, Case, Figures, compare, measure, prepare, run_case, spawn, train_case
from trainer import checkpoint, passes, update
from trainer.algorithms.threshold import make_controller
from trainer.distributed import ONE_RANK, Ranks, Sharding, shard
from trainer.policy.show_o import loading
from trainer.run import make_policy
from trainer.settings import TrainerSettings
from trainer.state import TrainState

pytestmark = pytest.mark.slow
GAUSSIAN = Case(family="gaussian", mode="shard")
# Micro-batches: the group of four of a rank needs two passes a step, a skipped one none, so that ranks differ.
SMALL = {"LOSS__MICRO_BATCH": "3", "POLICY__CHECKPOINTING": "true"}
SHOW_O = Case(mode="shard", options=SMALL)
CASES = (SHOW_O, GAUSSIAN)  # test_ranks.py has more
ADAM = {"OPTIMIZER__EMA": "0.9", "STEPS": "2"}


@dataclass(frozen=True)
class Outcome:
    """What two processes did: figures of `CASES`, `REPLICAS` and planted bugs, errors of a failure, the directories."""

    figures: Mapping[str, Figures]
    errors: Sequence[str]
    folder: Path

    def path(self, run: str, step: int) -> Path:
        """Return the checkpoint of a run after a step."""
        return self.folder / f"{run}/checkpoints/step-{step:06d}"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run all that needs two ranks: starting them costs more than any of it."""
    folder = tmp_path_factory.mktemp("sharding")
    prepare(folder)
    chain = [GAUSSIAN, GAUSSIAN.alone, GAUSSIAN.alone]
    resumed = [case.settings(folder, "resumed", STEPS=str(i + 1)) for i, case in enumerate(chain)]
    adam = Case(mode="shard").settings(folder, "adam", **ADAM)
    planted = {name: case.settings(folder, f"two-{name}") for name, (case, _) in PLANTED.items()}
    loss = [GAUSSIAN.settings(folder, "loss", STEPS=n, CHECKPOINT_EVERY="9") for n in ("1", "3")]
    figures = compare(CASES, folder, _check, resumed, adam, planted, loss, folder)
    train_case(ONE_RANK, Case(), Case().settings(folder, "adam-one", **ADAM))
    for name, (case, _) in PLANTED.items():
        figures[name] = measure(folder / f"one-{case.alone.name}", planted[name].run_dir, 4, split=True)
    return Outcome(figures, json.loads((folder / "errors.json").read_text()), folder)


def _check(
    ranks: Ranks,
    resumed: Sequence[TrainerSettings],
    adam: TrainerSettings,
    planted: Mapping[str, TrainerSettings],
    loss: Sequence[TrainerSettings],
    folder: Path,
) -> None:
    for settings, on in zip(resumed, (ranks, ONE_RANK, ranks), strict=True):
        if on is ranks or ranks.is_first:
            run_case(on, GAUSSIAN, settings)
        ranks.any(False)  # the other rank waits
    state = train_case(ranks, Case(), adam)
    with state.averaged():
        if ranks.is_first:
            state.policy.save(adam.run_dir / "policy")
    state = _restored(ranks, adam)
    state.save(adam.run_dir / "again", ranks)
    for name, settings in planted.items():
        case, change = PLANTED[name]
        with change(ranks):
            run_case(ranks, case, settings)
    errors = ranks.gather_all(_error_of_a_loss(ranks, *loss))
    if ranks.is_first:
        (folder / "errors.json").write_text(json.dumps(errors))


def _restored(ranks: Ranks, settings: TrainerSettings) -> TrainState:
    """Return a new state with the last checkpoint of a run."""
    state = TrainState.new(make_policy(settings), make_controller("none", 0.25), settings, ranks)
    found = checkpoint.latest(settings.run_dir / "checkpoints")
    assert found is not None
    state.restore(*checkpoint.load(found, settings))
    return state


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "tensors.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_split_policy_trains_as_a_whole_one(outcome: Outcome, case: Case) -> None:
    """The ranks draw two groups and one, and different numbers of previews; a group is skipped, some have no text."""
    found = outcome.figures[case.name]
    assert found.red == []
    assert found.textless > 0
    assert case.family == "gaussian" or found.skipped > 0


def test_a_checkpoint_fits_whole_and_split_policies(outcome: Outcome) -> None:
    """Split over two ranks, then one rank, then whole on two: as an uninterrupted run on one."""
    found, expected = (_tensors(outcome.path(run, 3)) for run in ("resumed", f"one-{GAUSSIAN.alone.name}"))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)


def test_adam_and_the_average_are_stored_whole(outcome: Outcome) -> None:
    """Moments of split parameters have the keys and shapes of whole ones, and come back bit for bit."""
    split, whole = (outcome.path(run, 2) for run in ("adam", "adam-one"))
    tensors = _tensors(split)
    assert {key: value.shape for key, value in tensors.items()} == {k: v.shape for k, v in _tensors(whole).items()}
    again = _tensors(outcome.folder / "adam/again/step-000002")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_one_process_reads_what_a_split_policy_wrote(outcome: Outcome) -> None:
    settings = Case().settings(outcome.folder, "adam", **ADAM)
    state = _restored(ONE_RANK, settings)
    assert state.ema is not None
    exported = loading.load(outcome.folder / "adam/policy").module.state_dict()
    averages = state.ema.to_save()
    assert exported.keys() == averages.keys()
    assert all(torch.equal(exported[key], value) for key, value in averages.items())


# -- failures --------------------------------------------------------------------------------------------------------


def _fails_in_the_third_step(ranks: Ranks, before: TrainerSettings, settings: TrainerSettings) -> None:
    train_case(ranks, GAUSSIAN, before)
    with _failing(ranks, MemoryError("planted")):
        train_case(ranks, GAUSSIAN, settings)


def _error_of_a_loss(ranks: Ranks, before: TrainerSettings, settings: TrainerSettings) -> str:
    train_case(ranks, GAUSSIAN, before)
    try:
        with _failing(ranks, None):
            train_case(ranks, GAUSSIAN, settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@contextmanager
def _failing(ranks: Ranks, error: Exception | None) -> Iterator[None]:
    """Let the passes of rank 1 fail from the step after the next: with an error, or a loss that is not finite."""
    clipped_loss, policy_update, updates = passes.clipped_loss, update.policy_update, list[None]()

    def failing(*arguments: Any, **options: Any) -> Any:
        loss, figures = clipped_loss(*arguments, **options)
        if ranks.rank == 0 or len(updates) < 2:
            return loss, figures
        if error is not None:
            raise error
        return loss * torch.nan, figures

    def counted(*arguments: Any) -> Any:
        updates.append(None)
        return policy_update(*arguments)

    with patch("trainer.passes.clipped_loss", failing), patch("trainer.train.policy_update", counted):
        yield


def test_memory_that_lacks_on_one_rank_ends_all(outcome: Outcome) -> None:
    """The ranks are not in step, so that the finished step is not saved."""
    settings = [GAUSSIAN.settings(outcome.folder, "memory", STEPS=n, CHECKPOINT_EVERY="9") for n in ("1", "3")]
    with pytest.raises(ProcessRaisedException):
        spawn(_fails_in_the_third_step, outcome.folder, *settings)
    assert [path.name for path in (outcome.folder / "memory/checkpoints").iterdir()] == ["step-000001"]


def test_a_loss_that_is_not_finite_is_agreed_on(outcome: Outcome) -> None:
    """Both ranks end with an error, after the finished step was saved."""
    assert [error.split(":")[0] for error in outcome.errors] == ["OtherRankFailed", "NonFinite"]
    found = sorted(path.name for path in (outcome.folder / "loss/checkpoints").iterdir())
    assert found == ["step-000001", "step-000002"]


def test_shard_divides_the_ranks(tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="4", RANKS__SHARD="2")
    settings.check_ranks(4)
    with pytest.raises(SettingsError, match=r"shard = 2 does not divide .* ranks, 3; .* a multiple of 2 ranks"):
        settings.check_ranks(3)
    with pytest.raises(SettingsError, match="shard = 3 does not divide the number of ranks, 4"):
        tiny_settings(PROMPTS_PER_STEP="4", RANKS__WORKERS="4", RANKS__SHARD="3")


# -- replicas of split policies --------------------------------------------------------------------------------------

FOUR = Case(family="gaussian", mode="shard", options={"PROMPTS_PER_STEP": "5"})  # two groups on one rank of four
REPLICAS = "replicas"


@contextmanager
def _replicated(ranks: Ranks) -> Iterator[None]:
    """One copy of the policy on each rank by FSDP2's mesh of replicas (HSDP), whatever the settings say."""
    with patch("trainer.state.shard", lambda models, ranks, count: shard(models, ranks, 1)):
        yield


def test_replicas_of_split_policies_are_averaged(outcome: Outcome) -> None:
    """Text and image passes, of ranks with different numbers of them."""
    assert outcome.figures[REPLICAS].red == []


def test_replicas_exchange_gradients_once_a_step(tmp_path: Path) -> None:
    """Four ranks with two copies, each split over two, equal one rank; messages are counted."""
    prepare(tmp_path)
    one, four = (case.settings(tmp_path, case.name) for case in (FOUR.alone, FOUR))
    run_case(ONE_RANK, FOUR.alone, one)
    spawn(_count_messages, tmp_path, four, tmp_path, world=4)
    assert measure(one.run_dir, four.run_dir, 4, split=True).red == []
    counts = json.loads((tmp_path / "counts.json").read_text())
    passes = STEPS * 2 * GaussianPolicy.image_steps
    assert counts == [{"reduce_scatter_single": passes, "all_reduce": STEPS}] * 4


def _count_messages(ranks: Ranks, settings: TrainerSettings, folder: Path) -> None:
    with ExitStack() as stack:
        sends = {
            name: stack.enter_context(patch.object(dist, name, wraps=getattr(dist, name)))
            for name in ("reduce_scatter_single", "all_reduce")
        }
        run_case(ranks, FOUR, settings)
    counts = ranks.gather_all({name: send.call_count for name, send in sends.items()})
    if ranks.is_first:
        (folder / "counts.json").write_text(json.dumps(counts))


# -- planted bugs ----------------------------------------------------------------------------------------------------


@contextmanager
def _not_scaled(ranks: Ranks) -> Iterator[None]:
    """The loss is not multiplied by the number of ranks, over which FSDP2 averages."""
    clipped_loss = passes.clipped_loss

    def smaller(*arguments: Any, **options: Any) -> Any:
        loss, figures = clipped_loss(*arguments, **options)
        return loss / ranks.world + loss.detach() * (1 - 1 / ranks.world), figures  # the figure is right

    with patch("trainer.passes.clipped_loss", smaller):
        yield


@contextmanager
def _divided_by_own_groups(ranks: Ranks) -> Iterator[None]:
    passes_of = passes.passes_of

    def local(policy: Any, groups: Any, usable: Any, *others: Any) -> Any:
        return passes_of(policy, groups, [i for i in usable if groups[i].is_ours], *others)

    with patch.object(update, "passes_of", local):
        yield


@contextmanager
def _replicas_not_exchanged(ranks: Ranks) -> Iterator[None]:
    """The exchange of gradients between replicas is never switched on, not even for the last pass."""
    exchange = Sharding.exchange_replicas
    with _replicated(ranks), patch.object(Sharding, "exchange_replicas", lambda self, _: exchange(self, False)):
        yield


PLANTED: dict[str, tuple[Case, Callable[[Ranks], Any]]] = {
    REPLICAS: (SHOW_O, _replicated),  # no bug
    "loss not scaled": (GAUSSIAN, _not_scaled),
    "loss divided by own groups": (GAUSSIAN, _divided_by_own_groups),
    "replicas not exchanged": (GAUSSIAN, _replicas_not_exchanged),
}


def _unpadded(ranks: Ranks, settings: TrainerSettings) -> None:
    """The ranks draw two groups and one; rank 1 makes no passes in place of the second."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=3), dist.group.WORLD)
    nothing = lambda *_, **__: torch.zeros((), requires_grad=True)  # noqa: E731
    with patch("trainer.passes._blank_loss", nothing if ranks.rank == 1 else passes._blank_loss):
        train_case(ranks, GAUSSIAN, settings)


def test_a_rank_without_padding_does_not_train(outcome: Outcome) -> None:
    with pytest.raises(ProcessRaisedException):
        spawn(_unpadded, outcome.folder, GAUSSIAN.settings(outcome.folder, "unpadded", STEPS="1"))
    assert not (outcome.folder / "unpadded/metrics.jsonl").read_text()


@pytest.mark.parametrize("name", [name for name in PLANTED if name != REPLICAS])
def test_a_planted_bug_is_found(outcome: Outcome, name: str) -> None:
    assert "gradient_difference" in outcome.figures[name].red
