"""The joint update of text and flow steps against UniRL-Zero's eqs. 2 and 3, one term at a time in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synod.contracts import ScoreItem
from tests.unit.trainer.flow_toy import FlowToy, vector
from tests.unit.trainer.loops import NO_SCREEN, NO_SLOPES, MakeSettings, lines
from tests.unit.trainer.reward_services import Judge
from trainer.algorithms.screen import screen
from trainer.algorithms.threshold import make_controller
from trainer.groups import Previews, ScoredGroup
from trainer.optim import make_optimizer
from trainer.policy.flow.segments import Sampler
from trainer.settings import TrainerSettings
from trainer.train import train
from trainer.types import Prompt, Query, Reward, RewardSpec, Rollout, Task
from trainer.update import policy_update

ETA, GUIDANCE, CLIP, BETA = 0.7, 3.0, {"text": 0.04, "image": 0.02}, {"text": 0.3, "image": 0.05}
ALPHA = {"text": 0.8, "image": 1.2}
REWARDS = ((0.9, 0.1, 0.5, 0.4), (0.2, 0.3, None, 0.25, 0.9))
PROMPTS = ("a cat", "two dogs")
Weights = dict[str, NDArray[np.float64]]


def group(policy: FlowToy, prompt: str, rewards: Sequence[float | None], number: int) -> ScoredGroup:
    """Rollouts that say something and draw twice, as a cycle edit does."""
    seeds = [(3, 0, number, place) for place in range(len(rewards))]
    said = policy.answer([Query(prompt)] * len(seeds), seeds)
    drawn = [
        policy.denoise(policy.start([prompt] * len(seeds), [(*seed, turn) for seed in seeds]), policy.image_steps)
        for turn in (0, 1)
    ]
    rollouts = tuple(Rollout(seed, parts) for seed, parts in zip(seeds, zip(said, *drawn, strict=True), strict=True))
    task = Task("toy", "none", Prompt(prompt, "toy"), RewardSpec({"a": 1.0}))
    found = tuple(Reward(None) if value is None else Reward(value) for value in rewards)
    previews = Previews(
        task, rollouts, (), (None,) * len(rollouts), screen([None] * len(rollouts), None, len(rollouts)), None
    )
    return ScoredGroup(previews, rollouts, (), found, tuple(rollout.answer for rollout in rollouts))


@dataclass(frozen=True)
class Naive:
    """The loss of numpy weights: eqs. 2 and 3 with their KL terms, written out."""

    sampler: Sampler
    reference: Weights
    equal_steps: bool

    def loss(self, weights: Weights, groups: Sequence[ScoredGroup]) -> float:
        total = 0.0
        for scored in groups:
            places = [i for i, reward in enumerate(scored.rewards) if reward.value is not None]
            values = np.array([scored.rewards[i].value for i in places])
            advantages = np.clip((values - values.mean()) / values.std(ddof=1), -1.1, 1.1)
            for i, advantage in zip(places, advantages, strict=True):
                for segment in scored.rollouts[i].segments:
                    term = self.text if segment.kind == "text" else self.image
                    total += term(weights, segment, float(advantage)) / len(places) / len(groups)
        return -total

    def text(self, weights: Weights, segment: Any, advantage: float) -> float:
        new, far = (logits(w, segment.prompt) for w in (weights, self.reference))
        terms = []
        for word, old in zip(segment.ids_S.tolist(), segment.logp_S.tolist(), strict=True):
            d = far[word] - new[word]
            terms.append(surrogate(new[word] - old, advantage, CLIP["text"]) - BETA["text"] * (math.exp(d) - d - 1))
        return ALPHA["text"] * sum(terms) / len(terms)

    def image(self, weights: Weights, segment: Any, advantage: float) -> float:
        total, count = 0.0, 0
        for k in range(self.sampler.steps - 1):  # the last step decides nothing
            after, (t, t_next) = segment.latent_SCHW[k + 1].flatten().numpy(), self.sampler.times[k : k + 2]
            mean, std, s2, kl = self.step(weights, segment, k)
            density = float(np.mean(-0.5 * ((after - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)))
            w_k = (t - t_next) * (1 + s2 * (1 - t) / (2 * t)) / std
            ratio = (density - float(segment.logp_S[k])) / (w_k if self.equal_steps else 1)
            total, count = total + surrogate(ratio, advantage, CLIP["image"]) - BETA["image"] * kl, count + 1
        return ALPHA["image"] * total / count

    def step(self, weights: Weights, segment: Any, k: int) -> tuple[NDArray[np.float64], float, float, float]:
        """Mean and deviation of a step, its squared noise a unit of time, and its KL to the reference."""
        x, (t, t_next) = segment.latent_SCHW[k].flatten().numpy(), self.sampler.times[k : k + 2]
        s2 = ETA**2 * t / (1 - (t_next if t == 1 else t))
        std = math.sqrt(s2 * (t - t_next))
        mean, far = (self.mean(w, segment.prompt, x, t, t_next, s2) for w in (weights, self.reference))
        return mean, std, s2, float(np.mean((mean - far) ** 2)) / (2 * std**2)

    def kl(self, weights: Weights, groups: Sequence[ScoredGroup], k: int) -> float:
        """The mean KL of a step over the images of all rewarded rollouts."""
        pairs = [pair for scored in groups for pair in zip(scored.rollouts, scored.rewards, strict=True)]
        segments = [one for rollout, reward in pairs if reward.value is not None for one in rollout.segments]
        images = [segment for segment in segments if segment.kind == "image"]
        return float(np.mean([self.step(weights, image, k)[-1] for image in images]))

    def mean(self, w: Weights, prompt: str, x: Any, t: float, t_next: float, s2: float) -> NDArray[np.float64]:
        u = w["velocity.of_x"] @ x + t * w["velocity.of_t"]
        c = u + w["velocity.of_prompt"] @ vector(prompt).double().numpy()
        v = u + GUIDANCE * (c - u)
        return np.asarray(x - (v + s2 / 2 * (x + (1 - t) * v) / t) * (t - t_next))


def logits(w: Weights, prompt: str) -> NDArray[np.float64]:
    found = w["words.weight"] @ vector(prompt).double().numpy() + w["words.bias"]
    return np.asarray(found - np.log(np.exp(found).sum()))


def surrogate(log_ratio: float, advantage: float, clip: float) -> float:
    ratio = math.exp(log_ratio)
    return min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


def numpy_of(policy: FlowToy) -> Weights:
    return {name: value.detach().double().numpy().copy() for name, value in policy.module.state_dict().items()}


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> TrainerSettings:
    options = {
        f"LOSS__{kind.upper()}__{name}": str(values[kind])
        for name, values in (("ALPHA", ALPHA), ("CLIP", CLIP), ("BETA", BETA))
        for kind in ("text", "image")
    }
    return tiny_settings(
        PROMPTS_PER_STEP="2",
        LOSS__SCALE="own_length",
        LOSS__NORMALISE="group_std",
        LOSS__ADVANTAGE_CLAMP="1.1",
        OPTIMIZER__LR="1e-30",
        **options,
    )


@pytest.mark.parametrize("step_scale", ["likelihood", "equal"])
def test_the_joint_loss_is_that_of_eqs_2_and_3(
    settings: TrainerSettings, step_scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of several lengths, two images a rollout, a missing reward, clamped advantages, clips on both sides."""
    monkeypatch.setattr("trainer.update.MAX_GRAD_NORM", 1e30)
    settings = settings.model_copy(update={"loss": settings.loss.model_copy(update={"step_scale": step_scale})})
    policy = FlowToy(Sampler.of(5, 3.0, ETA), GUIDANCE)
    policy.module.double()
    policy.keep_reference()
    reference = numpy_of(policy)
    groups = [group(policy, PROMPTS[i], REWARDS[i], i) for i in (0, 1)]
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    naive, weights = Naive(policy.sampler, reference, step_scale == "equal"), numpy_of(policy)
    found = policy_update(policy, make_optimizer(policy, settings), groups, NO_SLOPES, settings, 0)
    assert sum(found.losses.values()) == pytest.approx(naive.loss(weights, groups), rel=1e-6)
    for stats in found.stats.values():  # or the test would prove little
        assert 0 < (stats.clip_fraction or 0) < 1
        assert (stats.kl or 0) > 1e-4
    assert found.stats["image"].decisions == 8 * 2 * 4
    assert found.stats["image"].kl_by_step == pytest.approx([naive.kl(weights, groups, k) for k in range(4)], rel=1e-6)
    assert found.stats["image"].low < 1 - CLIP["image"] < 1 + CLIP["image"] < found.stats["image"].high
    rng = np.random.default_rng(0)
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is not None
        for index in rng.choice(parameter.numel(), 2, replace=False):
            slope = difference(naive, weights, groups, name, int(index))
            assert float(parameter.grad.flatten()[index]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def difference(naive: Naive, weights: Weights, groups: Sequence[ScoredGroup], name: str, index: int) -> float:
    losses = []
    for step in (1e-6, -1e-6):
        moved = {key: value.copy() for key, value in weights.items()}
        moved[name].flat[index] += step
        losses.append(naive.loss(moved, groups))
    return (losses[0] - losses[1]) / 2e-6


class Reds(Judge):
    """Rewards the red of an image."""

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        future: Future[list[Reward]] = Future()
        future.set_result([Reward(float(item.pixels()[0, 0, 0]) / 255) for item in items])
        return future


def mean_red(policy: FlowToy) -> float:
    """Over images of 40 prompts and the noise of another seed."""
    prompts, seeds = [f"prompt {i}" for i in range(40)], [(99, 0, i, 0) for i in range(40)]
    images = policy.images(policy.denoise(policy.start(prompts, seeds), policy.image_steps))
    return float(np.mean([image[0, 0, 0] for image in images])) / 255


@pytest.mark.parametrize("step_scale", ["likelihood", "equal"])
def test_a_flow_policy_learns_in_the_same_loop(
    tiny_settings: MakeSettings, step_scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)
    settings = tiny_settings(
        STEPS="15",
        CHECKPOINT_EVERY="100",
        DATA__GENEVAL_SHARE="1.0",
        SCREEN__GROUP_SIZE="12",
        SCREEN__THRESHOLD=NO_SCREEN,
        LOSS__SCALE="own_length",
        LOSS__STEP_SCALE=step_scale,
        LOSS__NORMALISE="group_std",
        OPTIMIZER__LR="0.15",
        LOSS__IMAGE__BETA="4e-3",
        LOSS__IMAGE__CLIP="1e-4",
    )
    policy = FlowToy(Sampler.of(4, 3.0, ETA), 1.0)
    policy.keep_reference()
    before = mean_red(policy)
    train(settings, policy, Reds(), make_controller("none", 0.5), lambda message: None)
    assert mean_red(policy) > before + 0.15
    records = lines(settings.run_dir)
    assert records[-1]["kl_image"] > 1e-3 > records[0]["kl_image"] == 0
    assert records[0]["kl_image_by_step"] == [0.0] * 3
    assert np.mean(records[-1]["kl_image_by_step"]) == pytest.approx(records[-1]["kl_image"], rel=1e-6)
    assert [record["ratio_max_image"] for record in records] == pytest.approx([1.0] * 15, abs=1e-5)
