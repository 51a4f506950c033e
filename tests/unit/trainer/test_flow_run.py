"""A flow-matching pipeline in the training loop: rewards rise, runs resume, and the run's policy is a pipeline."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny_vlm
from tests.unit.trainer.loops import LEARNING, equal, lines
from tests.unit.trainer.reward_services import Judge
from tests.unit.trainer.tiny_flow import FLOW, TEXT, Family, smoothness, write_pipeline
from tests.unit.trainer.tiny_run import make_settings
from trainer.algorithms.threshold import make_controller
from trainer.run import make_policy
from trainer.settings import TrainerSettings
from trainer.train import train

Make = Callable[..., TrainerSettings]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def flow_settings(world_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`flow_settings("sana", STEPS="2")`: for a tiny pipeline."""
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)  # most of the time

    def made(family: Family, **overrides: str) -> TrainerSettings:
        if not (world_dir / family).exists():
            write_pipeline(world_dir / family, family)
        return make_settings(world_dir, TEXT, {**FLOW, "POLICY__MODEL": f'"./{family}"', **overrides})

    return made


def run(settings: TrainerSettings, sign: int = 1) -> Weights:
    """Train on `sign` times the smoothness of images, and return the trained weights."""
    policy = make_policy(settings)
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    judge = Judge(lambda item: sign * smoothness(item), lambda item: sign * smoothness(item))
    train(settings, policy, judge, controller, lambda message: None)
    return {name: p.detach().clone() for name, p in policy.module.named_parameters() if p.requires_grad}


def test_rewards_of_a_flow_policy_rise(flow_settings: Make) -> None:
    """Images become smoother, as JPEG's size rewards it; and not because any update makes them so."""
    options = {**LEARNING, "LOSS__NORMALISE": "group_std", "LOSS__IMAGE__CLIP": "0.01", "LOSS__IMAGE__LR": "0.01"}
    found = []
    for sign in (1, -1):
        settings = flow_settings("sana", RUN_DIR=f'"{sign}"', **options)
        run(settings, sign)
        records = lines(settings.run_dir)
        found.append([sign * one["reward_mean"] for one in records])
        assert {one["ratio_max_image"] for one in records} == {1.0}  # what was drawn is what is learnt
        assert {one["loss_text"] for one in records} == {None}
    start, smooth, rough = (statistics.mean(part) for part in (found[0][:3], found[0][-3:], found[1][-3:]))
    assert smooth > start + 0.03
    assert rough < start


def test_a_flow_policy_resumes(flow_settings: Make) -> None:
    options = {"POLICY__LORA__RANK": "2", "POLICY__DTYPE": "bfloat16", "CHECKPOINT_EVERY": "1"}
    whole, resumed = (flow_settings("sana", STEPS="3", RUN_DIR=f'"{name}"', **options) for name in ("whole", "resumed"))
    run(flow_settings("sana", STEPS="1", RUN_DIR='"resumed"', **options))
    assert equal(run(whole), run(resumed))
    assert lines(whole.run_dir) == lines(resumed.run_dir)
    assert lines(whole.run_dir)[-1]["kl_image"] > 0


def test_a_language_model_is_trained_with_the_pipeline(flow_settings: Make, world_dir: Path) -> None:
    """Its answers to Sync-R1's queries become part of the prompt; the run resumes, and its policy can be evaluated."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_vlm.qwen(world_dir / "qwen", ("a", "red", "hat", "what", "is", "it"))
    options = {
        "DATA__GENEVAL_SHARE": "0.5",
        "PROMPTS_PER_STEP": "2",
        "POLICY__LANGUAGE__MODEL": '"./qwen"',
        "POLICY__LANGUAGE__MAX_NEW_TOKENS": "4",
        "CHECKPOINT_EVERY": "1",
        "LOSS__TEXT__LR": "1e-3",
        "LOSS__IMAGE__LR": "1e-2",
    }
    whole, resumed = (flow_settings("sana", STEPS="2", RUN_DIR=f'"{name}"', **options) for name in ("whole", "resumed"))
    run(flow_settings("sana", STEPS="1", RUN_DIR='"resumed"', **options))
    start = dict(make_policy(whole).module.named_parameters())
    trained = run(whole)
    assert equal(trained, run(resumed))
    records = lines(whole.run_dir)
    assert records == lines(resumed.run_dir)
    assert any(one["loss_text"] is not None for one in records)
    assert all(one["loss_image"] is not None for one in records)
    moved = {name.split(".")[0] for name, value in trained.items() if not torch.equal(value, start[name])}
    assert moved == {"image", "language"}
