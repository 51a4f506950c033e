"""Another family of policies in the same loop: a Gaussian over one color, without text, with a closed-form KL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor

from synod.contracts import ScoreItem
from tests.unit.trainer.gaussian_policy import TARGET, GaussianPolicy, closeness
from tests.unit.trainer.loops import NO_SCREEN, MakeSettings, lines
from tests.unit.trainer.reward_services import Judge
from trainer.algorithms.threshold import make_controller
from trainer.data.source import PromptTasks
from trainer.policy.base import Policy
from trainer.settings import TrainerSettings
from trainer.train import train
from trainer.types import Aggregation, Prompt, Reward, RewardSpec


def run(settings: TrainerSettings, judge: Judge | None = None) -> Tensor:
    """The trained mean [3]."""
    policy: Policy = GaussianPolicy()
    policy.keep_reference()
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    train(settings, policy, judge or Judge(closeness, closeness), controller, lambda message: None)
    return policy.module.get_parameter("mean").detach()


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)  # most of the time
    return {
        "DATA__GENEVAL_SHARE": "1.0",
        "OPTIMIZER__LR": "0.1",
        "LOSS__IMAGE__BETA": "1e-3",
        "CHECKPOINT_EVERY": "20",
    }


def test_a_gaussian_policy_reaches_the_optimum(tiny_settings: MakeSettings, options: dict[str, str]) -> None:
    """Without a screen: with one, the first draws of kept rollouts are selected, which moves the optimum by .06."""
    settings = tiny_settings(STEPS="80", SCREEN__GROUP_SIZE="12", SCREEN__THRESHOLD="none", **options)
    assert torch.sigmoid(run(settings)).tolist() == pytest.approx(TARGET, abs=0.05)
    records = lines(settings.run_dir)
    assert records[0]["reward_mean"] < 0.9 < 0.95 < records[-1]["reward_mean"]
    assert records[-1]["kl_image"] > 0.1  # in closed form: far from the start
    assert records[-1]["loss_text"] is None


class TwoScorers(Judge):
    """One scorer looks at red, another at green, on a scale a thousand times as large."""

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        future: Future[list[Reward]] = Future()
        scores = []
        for item in items:
            red, green, _ = item.pixels()[0, 0] / 255
            scores.append({"red": -((red - TARGET[0]) ** 2), "green": -1000 * (green - TARGET[1]) ** 2})
        future.set_result([Reward(sum(found.values()), found) for found in scores])
        return future


def test_gdpo_learns_rewards_of_any_scale(
    tiny_settings: MakeSettings, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sum, even a normalised one, moves red at random: the larger reward is nearly all of it."""

    def errors(aggregation: Aggregation, normalise: str, seed: int) -> list[float]:
        spec = RewardSpec({"red": 1.0, "green": 1.0}, aggregation=aggregation)
        source = PromptTasks([Prompt("a color", "prompt")], spec, (0,), prompts_per_step=2)
        monkeypatch.setattr("trainer.train.training_tasks", lambda settings, log: source)
        size = {"STEPS": "40", "SCREEN__GROUP_SIZE": "12", "SCREEN__THRESHOLD": NO_SCREEN}
        settings = tiny_settings(
            **size, LOSS__NORMALISE=normalise, SEED=str(seed), RUN_DIR=f'"{aggregation}-{seed}"', **options
        )
        color = torch.sigmoid(run(settings, TwoScorers()))[:2]
        return (color - torch.tensor(TARGET[:2])).abs().tolist()

    assert max(errors("gdpo", "none", 0)) < 0.05
    reds, greens = zip(*(errors("sum", "group_std", seed) for seed in range(3)), strict=True)
    assert max(greens) < 0.05
    assert max(reds) > 0.15


def test_a_gaussian_policy_resumes(tiny_settings: MakeSettings, options: dict[str, str]) -> None:
    whole, resumed = (tiny_settings(STEPS="4", RUN_DIR=f'"{name}"', **options) for name in ("whole", "resumed"))
    run(tiny_settings(STEPS="2", RUN_DIR='"resumed"', **options))
    assert torch.equal(run(whole), run(resumed))
    assert lines(whole.run_dir) == lines(resumed.run_dir)


def test_a_strong_kl_keeps_the_gaussian_policy(tiny_settings: MakeSettings, options: dict[str, str]) -> None:
    def distance(beta: str) -> float:
        settings = tiny_settings(STEPS="20", RUN_DIR=f'"{beta}"', **{**options, "LOSS__IMAGE__BETA": beta})
        return float(run(settings).norm())

    assert distance("10") < 0.2 * distance("0")
