"""A run on two ranks equals the run on one: draws, thresholds, advantages and rewards bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synod.contracts import ScoreItem
from synod.errors import InvalidRequest
from tests.unit.trainer.loops import MakePolicy, MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, brightness, redness, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from tests.unit.trainer.world_two import Case, Figures, compare, spawn
from trainer import run as run_module
from trainer.algorithms.threshold import make_controller
from trainer.distributed import Ranks
from trainer.errors import NonFinite, OtherRankFailed, OutOfMemory, RewardServiceUnavailable
from trainer.optim import learning_rates
from trainer.policy.base import Policy
from trainer.policy.show_o import loading
from trainer.policy.show_o.policy import Sampling
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.train import train

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
SAMPLING = Sampling(4, 2.0, max_new_tokens=4)
# Three groups a step: a visual, a textual and a GenEval group, which has no text.
BASE = {"CHECKPOINT_EVERY": "1", "LOSS__BASELINE": "population"}
THREE = {"PROMPTS_PER_STEP": "3", "DATA__GENEVAL_SHARE": "0.3333", **BASE}
ROUNDED = ("loss_text", "loss_image", "grad_norm", "kl_text", "kl_image", "ratio_max_text", "ratio_max_image")


def lost_for_cats(item: ScoreItem) -> float | None:
    """GenEval groups of cats have no reward, so that they are skipped; some previews have no score."""
    return None if "cats" in str(item.prompt) else brightness(item)


def _sgd(policy: Policy, settings: TrainerSettings) -> torch.optim.Optimizer:
    tables = [
        {"params": list(group.parameters), "lr": lr}
        for group, lr in zip(policy.parameter_groups(), learning_rates(policy, settings, 0), strict=True)
    ]
    return torch.optim.SGD(tables)


def run(ranks: Ranks, settings: TrainerSettings, model: str) -> TrainState:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:  # the weights of AdamW amplify rounding errors of gradients near 0
        patch.setattr("trainer.state.make_optimizer", _sgd)
        patch.setattr("trainer.checkpoint.KEEP", 9)
        patch.setattr("trainer.train.log_images", lambda *_: None)
        policy = loading.load(model, sampling=SAMPLING)
        policy.keep_reference()
        controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
        judge = Judge(lost_for_cats, redness)
        return train(settings, policy, judge, controller, lambda message: None, ranks=ranks)


@pytest.fixture
def model(make_policy: MakePolicy, tmp_path: Path) -> str:
    make_policy().save(tmp_path / "start")
    return str(tmp_path / "start")


def exact(settings: TrainerSettings) -> list[dict[str, Any]]:
    return lines(settings.run_dir, "heldout", *ROUNDED)


def rounded(settings: TrainerSettings) -> list[list[float | None]]:
    return [[line[name] for name in ROUNDED] for line in lines(settings.run_dir)]


def tensors(settings: TrainerSettings, step: int) -> dict[str, torch.Tensor]:
    return load_file(settings.run_dir / f"checkpoints/step-{step:06d}/tensors.safetensors")


CASES = (Case(), Case(trained="lora"), Case(family="gaussian"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    return compare(CASES, tmp_path_factory.mktemp("compared"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_equal_one(compared: dict[str, Figures], case: Case) -> None:
    """Three groups on two ranks, so one draws twice as many; Show-o: a skipped group and groups without text."""
    found = compared[case.name]
    assert (found.codes, found.thresholds, found.advantages, found.records) == (True, True, True, True)
    assert found.ranks_agree
    assert found.draw_difference < 1e-5
    assert found.rounded_difference < 1e-5
    assert found.gradient_difference < 1e-5
    assert found.weight_difference < 1e-6
    assert found.textless > 0
    if case.family == "show_o":
        assert found.skipped > 0


def test_a_run_may_resume_on_another_number_of_ranks(tiny_settings: MakeSettings, model: str, tmp_path: Path) -> None:
    """Two ranks, then one, then two: as an uninterrupted run on one."""
    whole = tiny_settings(STEPS="3", RUN_DIR='"whole"', **THREE)
    run(Ranks(), whole, model)
    for steps, world in (("1", 2), ("2", 1), ("3", 2)):
        settings = tiny_settings(STEPS=steps, RUN_DIR='"parts"', **THREE)
        folder = tmp_path / f"join-{steps}"
        folder.mkdir()
        spawn(run, folder, settings, model, world=world)
    assert exact(settings) == exact(whole)
    for key, tensor in tensors(whole, 3).items():
        torch.testing.assert_close(tensors(settings, 3)[key], tensor, rtol=0, atol=1e-6)


def _fails_on_rank_1(ranks: Ranks, settings: TrainerSettings, model: str, what: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing = {
            "service": RewardServiceUnavailable,
            "request": InvalidRequest,
            "memory": OutOfMemory,
            "loss": NonFinite,
        }
        if ranks.rank == 1 and what == "loss":
            patch.setattr("trainer.passes.clipped_loss", _not_finite)
        elif ranks.rank == 1:
            error = MemoryError() if what == "memory" else failing[what]("planted")
            patch.setattr(Judge, "submit", partial(_fail, error))
        with pytest.raises(failing[what] if ranks.rank == 1 else OtherRankFailed):
            run(ranks, settings, model)


def _fail(error: Exception, *_: object) -> Any:
    raise error


def _not_finite(new: torch.Tensor, *_: object, **__: object) -> Any:
    from trainer.algorithms.losses import LossStats

    return new.sum() * torch.nan, LossStats()


@pytest.mark.parametrize("what", ["service", "request", "memory", "loss"])
def test_a_failure_on_one_rank_ends_all(tiny_settings: MakeSettings, model: str, tmp_path: Path, what: str) -> None:
    settings = tiny_settings(STEPS="2", **{**THREE, "CHECKPOINT_EVERY": "9"})
    run(Ranks(), tiny_settings(STEPS="1", **{**THREE, "CHECKPOINT_EVERY": "9"}), model)
    spawn(_fails_on_rank_1, tmp_path, settings, model, what)
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == ["step-000001"]
    assert len(lines(settings.run_dir)) == 1


# -- the program under torchrun --------------------------------------------------------------------------------------


def torchrun(settings: TrainerSettings, toml: Path, world: int) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    options = ["--steps", str(settings.steps), "--run-dir", str(settings.run_dir), "--url", settings.rewards.url]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SYNOD__TRAINER__PROMPTS_PER_STEP": str(settings.prompts_per_step),
        "SYNOD__TRAINER__EVALUATE__PROMPTS": "6",
    }
    return subprocess.run(
        [*launcher, "-m", "trainer", str(toml), *options], env=environ, capture_output=True, text=True, check=False
    )


def test_torchrun_trains_as_one_process(ready: MakeSettings, world_dir: Path) -> None:  # noqa: F811
    with serve(Judge()) as url:
        one, two = (ready(REWARDS__URL=url, PROMPTS_PER_STEP="2", RUN_DIR=f'"{name}"') for name in ("one", "two"))
        assert run_module.run(one, evaluated=False) == 0
        found = torchrun(two, world_dir / "train.toml", 2)
        assert found.returncode == 0, found.stderr
        refused = torchrun(two.model_copy(update={"prompts_per_step": 1}), world_dir / "train.toml", 2)
    assert exact(two)[0] == exact(one)[0]
    assert [line["keys"] for line in exact(two)] == [line["keys"] for line in exact(one)]
    assert (two.run_dir / "policy/config.json").exists()
    assert (two.run_dir / "evaluation/after.json").exists()
    assert refused.returncode != 0
    assert "2 ranks share the groups of a step, but [trainer] prompts_per_step is 1" in refused.stderr
