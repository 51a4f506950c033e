"""A run on two ranks equals the run on one: draws, thresholds, advantages and rewards bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from synod.errors import InvalidRequest, SettingsError
from tests.unit.trainer.loops import AUTO, MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from tests.unit.trainer.world_two import (
    LIMITS,
    ROUNDED,
    STEPS,
    Case,
    Figures,
    compare,
    last_tensors,
    make_judge,
    measure,
    prepare,
    run_case,
    train_case,
)
from trainer import checkpoint, passes, rollout
from trainer import run as run_module
from trainer.algorithms.losses import LossStats
from trainer.distributed import ONE_RANK, Ranks
from trainer.errors import RewardServiceUnavailable
from trainer.policy.flow import loading
from trainer.policy.lora import ADAPTER_FILE
from trainer.settings import TrainerSettings
from trainer.state import TrainState

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
KINDS: tuple[dict[str, Any], ...] = ({}, {"trained": "lora"}, {"family": "gaussian"})
GAUSSIAN, SPLIT = Case(family="gaussian"), Case(family="gaussian", mode="shard")
UNEVEN = Case(family="gaussian", options={"PROMPTS_PER_STEP": "2", "SEED": "38"})  # one group a rank
MOVING = Case(family="gaussian", options={**AUTO, "STEPS": "4", "PROMPTS_PER_STEP": "2"})
SPLIT_FLOWS = (Case(family="flow", mode="shard"), Case(family="flow", trained="lora", mode="shard"))
CASES = (
    *(Case(mode=mode, **kind) for mode in ("replicate", "shard") for kind in KINDS),
    UNEVEN,
    Case(family="gaussian", options={"OPTIMIZER__EMA": "0.9"}),
    MOVING,
    Case(family="flow"),
    *SPLIT_FLOWS,
    Case(family="joint"),
)
RESUMED = (Case(), SPLIT)
SAVED = {"full": "transformer/diffusion_pytorch_model.safetensors", "lora": f"adapter/{ADAPTER_FILE}"}


def _raise(error: Exception, *_: object) -> Any:
    raise error


FAILURES = {
    "service": RewardServiceUnavailable("planted"),
    "request": InvalidRequest("planted"),
    "memory": MemoryError(),
    "loss": None,  # NaN
}
LOCAL = {  # work of an update between two exchanges, at which a device may lack memory
    "meter": "trainer.update.GradientMeter",
    "messages": "trainer.distributed.ranks._messages",
    "clip": "torch.nn.utils.clip_grad_norm_",
    "step": "torch.optim.AdamW.step",
}
FILES = {  # of rank 0
    "opening": ("trainer.train.Metrics", partial(_raise, SettingsError("planted"))),
    "writing": ("trainer.report.metrics.Metrics.log", partial(_raise, OSError("planted"))),
}


@dataclass(frozen=True)
class Outcome:
    """What two processes did: the figures of `CASES`, the directories, and the errors of each failure by rank."""

    figures: Mapping[str, Figures]
    folder: Path
    errors: Mapping[str, Sequence[str]]
    planted: Mapping[str, Figures]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run all that needs two ranks: starting them costs more than any of it."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare(folder)
    failing = {
        f"{case.mode}-{what}": [_settings(folder, f"failing-{case.mode}-{what}", case, steps) for steps in (1, 2)]
        for case in (GAUSSIAN, SPLIT)
        for what in (FAILURES if case is SPLIT else (*FAILURES, *LOCAL, *FILES))
    }
    planted = {name: GAUSSIAN.settings(folder, f"two-{name}") for name in PLANTED}
    resumed = {case.name: _resumed(folder, case) for case in RESUMED}
    saved = {case.name: case.settings(folder, f"saved-{case.name}", STEPS="1") for case in SPLIT_FLOWS}
    figures = compare(CASES, folder, _check, failing, planted, resumed, saved, folder)
    alone = {name: GAUSSIAN.settings(folder, f"one-{name}") for name in PLANTED}
    for name, settings in alone.items():
        with PLANTED[name](ONE_RANK):
            run_case(ONE_RANK, GAUSSIAN, settings)
    return Outcome(
        figures,
        folder,
        json.loads((folder / "errors.json").read_text()),
        {name: measure(alone[name].run_dir, planted[name].run_dir, 4) for name in PLANTED},
    )


def _settings(folder: Path, run: str, case: Case, steps: int) -> TrainerSettings:
    return case.settings(folder, run, STEPS=str(steps), CHECKPOINT_EVERY="9")


def _resumed(folder: Path, case: Case) -> list[TrainerSettings]:
    kinds = (case, case.alone, case)
    return [_settings(folder, f"resumed-{case.name}", kind, steps) for steps, kind in enumerate(kinds, 1)]


def _check(
    ranks: Ranks,
    failing: Mapping[str, Sequence[TrainerSettings]],
    planted: Mapping[str, TrainerSettings],
    resumed: Mapping[str, Sequence[TrainerSettings]],
    saved: Mapping[str, TrainerSettings],
    folder: Path,
) -> None:
    errors = {what: ranks.gather_all(_fail(ranks, what, *settings)) for what, settings in failing.items()}
    if ranks.is_first:
        (folder / "errors.json").write_text(json.dumps(errors))
    for name, settings in planted.items():
        with PLANTED[name](ranks):
            run_case(ranks, GAUSSIAN, settings)
    for case in RESUMED:
        for settings, on in zip(resumed[case.name], (ranks, ONE_RANK, ranks), strict=True):
            if on is ranks or ranks.is_first:
                run_case(on, case, settings)
            ranks.any(False)  # the other rank waits
    for case in SPLIT_FLOWS:
        state = train_case(ranks, case, saved[case.name])
        if ranks.is_first:
            state.policy.save(saved[case.name].run_dir / "policy")
        ranks.any(False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_equal_one(outcome: Outcome, case: Case) -> None:
    """With three groups, so that one rank draws twice as many."""
    found = outcome.figures[case.name]
    assert found.red == [], found
    if case.family in ("flow", "joint"):  # whose text encoders read few tokens
        assert sum(line["text_cut"] for line in lines(outcome.folder / f"two-{case.name}")) > 0
    assert (found.textless > 0) == (case.family != "joint")  # whose every prompt asks first
    if case.family == "show_o":
        assert found.skipped > 0


def test_ranks_may_draw_different_numbers_of_batches(outcome: Outcome) -> None:
    assert (1, 3) in outcome.figures[UNEVEN.name].batches


def test_ranks_move_screens_alike(outcome: Outcome) -> None:
    """By what all of them measured: from none to finished images, in the middle of the run."""
    alone, both = (lines(outcome.folder / f"{world}-{MOVING.name}") for world in ("one", "two"))
    steps = [line["screens"]["none"] for line in alone]
    assert (steps[0], steps[-1]) == (None, 4)
    assert [line["screens"]["none"] for line in both] == steps
    assert [line["foresight"] for line in both] == [line["foresight"] for line in alone]


@pytest.mark.parametrize("case", RESUMED, ids=lambda case: case.name)
def test_a_run_may_resume_on_another_number_of_ranks(outcome: Outcome, case: Case) -> None:
    """Two ranks, then one, then two: as an uninterrupted run on one."""
    whole, parts = outcome.folder / f"one-{case.alone.name}", outcome.folder / f"resumed-{case.name}"
    assert lines(parts, *ROUNDED) == lines(whole, *ROUNDED)
    found, expected = last_tensors(parts), last_tensors(whole)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=LIMITS["weight_difference"])
    names = sorted((parts / "checkpoints").iterdir())
    written_on = [json.loads((path / "state.json").read_text())["ranks"] for path in names]
    assert ([path.name for path in names], written_on) == (["step-000001", "step-000002", "step-000003"], [2, 1, 2])


@pytest.mark.parametrize("case", SPLIT_FLOWS, ids=lambda case: case.name)
def test_a_split_flow_is_saved_whole(outcome: Outcome, case: Case) -> None:
    """By rank 0 alone: what it trained, and the pipeline, are those of the checkpoint."""
    run = outcome.folder / f"saved-{case.name}"
    stored = load_file(run / "policy" / SAVED[case.trained])
    found = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
    trained = {
        key.partition("/policy/")[2].replace(".default.", "."): value
        for key, value in last_tensors(run).items()
        if "/policy/" in key
    }
    assert found.keys() - {"pos_embed.pos_embed"} == trained.keys()  # a buffer
    assert all(torch.equal(found[key], value) for key, value in trained.items())
    assert loading.load(run / "policy", max_text_length=6).module.state_dict()


def test_every_adapter_of_a_split_flow_has_a_gradient(outcome: Outcome) -> None:
    """In the last step: A has none in the first one, where B is 0."""
    found = load_file(outcome.folder / f"two-{SPLIT_FLOWS[1].name}/gradients.safetensors")
    last = {key: grad for key, grad in found.items() if key.startswith(f"{STEPS - 1}/")}
    assert last
    assert all("lora_" in key and grad.abs().max() > 0 for key, grad in last.items())


# -- failures ---------------------------------------------------------------------------------------------------------


def _fail(ranks: Ranks, what: str, before: TrainerSettings, settings: TrainerSettings) -> str:
    """Train one step, then fail on rank 1; return this rank's error."""
    what = what.split("-")[1]
    train_case(ranks, GAUSSIAN, before)
    judge, loss = make_judge(GAUSSIAN), passes.clipped_loss
    if ranks.rank == 1 and what == "loss":
        loss = _not_finite
    elif ranks.rank == 1 and what in FAILURES:
        judge.submit = partial(_raise, FAILURES[what])  # type: ignore[method-assign]
    try:
        with ExitStack() as stack:
            stack.enter_context(patch("trainer.passes.clipped_loss", loss))
            if ranks.rank == 1 and what in LOCAL:
                stack.enter_context(patch(LOCAL[what], partial(_raise, torch.OutOfMemoryError("planted"))))
            if ranks.is_first and what in FILES:
                stack.enter_context(patch(*FILES[what]))
            train_case(ranks, GAUSSIAN, settings, judge)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _not_finite(new: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, LossStats]:
    return new.sum() * torch.nan, LossStats()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("service", "RewardServiceUnavailable: planted"),
        ("request", "InvalidRequest: planted"),
        ("memory", "OutOfMemory: "),
        ("loss", "NonFinite: "),
    ],
)
@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_a_failure_on_one_rank_ends_all(outcome: Outcome, mode: str, what: str, error: str) -> None:
    """The finished step stays, and is readable."""
    first, second = outcome.errors[f"{mode}-{what}"]
    assert second.startswith(error)
    assert first.startswith(f"OtherRankFailed: rank 1 failed: {error}")
    run = outcome.folder / f"failing-{mode}-{what}"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert last_tensors(run)
    assert len(lines(run)) == 1


@pytest.mark.parametrize("what", LOCAL)
def test_memory_that_lacks_between_two_exchanges(outcome: Outcome, what: str) -> None:
    """No rank waits for the other at an exchange; what is saved stays readable."""
    first, second = outcome.errors[f"replicate-{what}"]
    assert second.startswith("OutOfMemory: out of memory in the update (planted). ")
    assert first == "OtherRankFailed: rank 1 failed: OutOfMemoryError: planted"
    run = outcome.folder / f"failing-replicate-{what}"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]


def test_what_rank_0_alone_opens_is_agreed_on(outcome: Outcome) -> None:
    """Bad input in a file that only rank 0 reads."""
    assert outcome.errors["replicate-opening"] == [
        "SettingsError: planted",
        "SettingsError: rank 0 failed: SettingsError: planted",
    ]


def test_a_record_that_cannot_be_written_loses_no_step(outcome: Outcome) -> None:
    first, second = outcome.errors["replicate-writing"]
    assert (first, second) == ("OSError: planted", "OtherRankFailed: rank 0 failed: OSError: planted")
    run = outcome.folder / "failing-replicate-writing"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert len(lines(run)) == 1


# -- bugs that the comparison must find -------------------------------------------------------------------------------


@contextmanager
def _summed_twice(ranks: Ranks) -> Iterator[None]:
    sum_gradients = Ranks.sum_gradients

    def twice(self: Ranks, parameters: Any) -> None:
        parameters = list(parameters)
        sum_gradients(self, parameters)
        sum_gradients(self, parameters)

    with patch.object(Ranks, "sum_gradients", twice):
        yield


@contextmanager
def _not_summed_on_rank_1(ranks: Ranks) -> Iterator[None]:
    sum_gradients = Ranks.sum_gradients

    def kept(self: Ranks, parameters: Any) -> None:
        parameters = list(parameters)
        own = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        sum_gradients(self, parameters)
        if self.rank == 1:
            for parameter, grad in zip(parameters, own, strict=True):
                parameter.grad = grad

    with patch.object(Ranks, "sum_gradients", kept):
        yield


@contextmanager
def _divided_by_own_groups(ranks: Ranks) -> Iterator[None]:
    clipped_loss, factor = passes.clipped_loss, 3 / len(ranks.mine(3))  # no group is skipped

    def larger(*arguments: Any, weight: float, **options: Any) -> Any:
        return clipped_loss(*arguments, weight=weight * factor, **options)

    with patch("trainer.passes.clipped_loss", larger):
        yield


@contextmanager
def _thresholds_that_move_within_a_step(ranks: Ranks) -> Iterator[None]:
    """The threshold of a group depends on the groups that its rank has begun before."""
    threshold_of, begun = TrainState.threshold, list[int]()

    def moved(self: TrainState, task: Any) -> float | None:
        threshold = threshold_of(self, task)
        begun.append(self.step)
        return None if threshold is None else threshold + 0.02 * (begun.count(self.step) - 1)

    with patch.object(TrainState, "threshold", moved):
        yield


@contextmanager
def _rank_in_the_seed(ranks: Ranks) -> Iterator[None]:
    sample_previews = rollout.sample_previews

    def seeded(*arguments: Any) -> Any:
        *others, key, clock = arguments
        return sample_previews(*others, (key[0] + ranks.rank, *key[1:]), clock)

    with patch("trainer.rollout.sample_previews", seeded):
        yield


PLANTED: dict[str, Callable[[Ranks], Any]] = {
    "gradients summed twice": _summed_twice,
    "gradients not summed on rank 1": _not_summed_on_rank_1,
    "loss divided by own groups": _divided_by_own_groups,
    "thresholds that move within a step": _thresholds_that_move_within_a_step,
    "rank in the seed": _rank_in_the_seed,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(outcome: Outcome, name: str) -> None:
    """On one rank none of them changes the run, so that the comparison is what finds it."""
    found = outcome.planted[name]
    assert found.red, found


# -- the program under torchrun --------------------------------------------------------------------------------------


def test_sigterm_to_one_rank_stops_all(
    ready: MakeSettings,  # noqa: F811
    world_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both ranks stop after the step, and one process trains the rest, as if nothing had happened."""
    started: list[subprocess.Popen[str]] = []

    def rewarding(number: int) -> None:
        if started and number == 0:
            os.kill(_pid_of_rank(started[0].pid, 1), signal.SIGTERM)

    options = {"PROMPTS_PER_STEP": "2", "STEPS": "3", "SCREEN__AUDIT": "0.1"}  # the default, as torchrun reads it
    with serve(Judge()) as url:
        one = ready(REWARDS__URL=url, RUN_DIR='"one"', **options)
        assert run_module.run(one, evaluated=False) == 0
    with serve(Judge(), rewarding) as url:
        two = ready(REWARDS__URL=url, RUN_DIR='"two"', **options)
        started.append(torchrun(two, world_dir / "train.toml", 2))
        said, _ = started[0].communicate(timeout=200)
        assert started[0].returncode == 0, said
        assert "stopping after this step and its checkpoint" in said
        assert "stopped after step 1 of 3" in said
        assert [path.name for path in (two.run_dir / "checkpoints").iterdir()] == ["step-000001"]
        assert checkpoint.check(two.run_dir / "checkpoints", two) == 2
        assert lines(two.run_dir, *ROUNDED) == lines(one.run_dir, *ROUNDED)[:1]
        capsys.readouterr()
        assert run_module.run(two, evaluated=False) == 0
    assert "resuming on 1 rank; the checkpoint was written on 2" in capsys.readouterr().out
    assert [line["keys"] for line in lines(two.run_dir)] == [line["keys"] for line in lines(one.run_dir)]
    assert (two.run_dir / "policy/config.json").exists()


def torchrun(settings: TrainerSettings, toml: Path, world: int) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    options = ["--steps", str(settings.steps), "--run-dir", str(settings.run_dir), "--url", settings.rewards.url]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SYNOD__TRAINER__PROMPTS_PER_STEP": str(settings.prompts_per_step),
        "SYNOD__TRAINER__REWARDS__SURROGATE": settings.rewards.surrogate,
    }
    return subprocess.Popen(
        [*launcher, "-m", "trainer", str(toml), *options, "--no-evaluation"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _pid_of_rank(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = (pid for pid in children if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return int(found)
