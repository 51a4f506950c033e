"""The settings in deploy/configs: what each states of its paper, and that a policy can read its prompts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from embedded.makers.language import REFINE
from services.scorers import registry as scorers
from services.settings import load as load_service
from synod.errors import SettingsError
from trainer.data.prompts import read_prompts
from trainer.data.source import wanted_rewards
from trainer.policy.flow.sde import decisions, sigmas
from trainer.rewards.served import Served
from trainer.settings import FlowSettings, PromptSettings, load, load_personalize

ROOT = Path(__file__).parents[2]
CONFIGS, DATA = ROOT / "deploy/configs", ROOT / "embedded/data/prompts"
PUBLISHED = ["mask_grpo", "sync_r1_paper", "sd35_flow_grpo", "gvu_train"]  # they train a published policy


def test_mask_grpo_has_its_authors_values() -> None:
    """Those of code/configs/Mask_GRPO_train_512x512.yaml and code/models/modeling_showo.py."""
    settings = load(CONFIGS / "mask_grpo.toml", {})
    assert settings.policy.model == "showlab/show-o-512x512"
    assert (settings.policy.sampler.denoising_steps, settings.policy.sampler.guidance_scale) == (50, 0.0)
    assert (settings.screen.group_size, settings.screen.threshold) == (6, "none")
    assert not settings.needs_reference  # no KL term
    assert settings.loss.normalise == "group_std"
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.schedule) == (3e-6, 1000, "cosine")
    assert (settings.steps, settings.seed, settings.prompts_per_step) == (16000, 42, 16)
    assert (settings.policy.dtype, settings.policy.checkpointing) == ("bfloat16", True)
    assert set(settings.evaluate.scorers) == {"image_reward"}
    assert set(settings.rewards.scorers) == {"clip_t"}
    served = load_service(CONFIGS / "mask_grpo.toml", {}).scorers
    assert {one.kind for one in served.values()} == {"clip_t", "image_reward"}


def test_sd35_flow_grpo_has_its_authors_values() -> None:
    """Those of `pickscore_sd3` in config/grpo.py, of config/base.py and scripts/train_sd3.py."""
    settings = load(CONFIGS / "sd35_flow_grpo.toml", {})
    policy = settings.policy
    assert isinstance(policy, FlowSettings)
    assert (policy.model, policy.resolution) == ("stabilityai/stable-diffusion-3.5-medium", 512)
    assert policy.max_text_length == 128
    sampler = policy.sampler
    assert (sampler.denoising_steps, sampler.guidance_scale, sampler.eta) == (10, 4.5, 0.7)
    assert sampler.evaluation_steps == 40
    assert list(decisions(sampler.denoising_steps, sampler.sde)) == list(range(int(10 * 0.99)))  # timestep_fraction
    assert policy.lora is not None
    assert (policy.lora.rank, policy.lora.alpha, len(policy.lora.targets)) == (32, 64, 8)
    loss = settings.loss
    assert (loss.image.clip, loss.image.alpha, loss.normalise, loss.advantage_clamp) == (1e-4, 1.0, "batch_std", 5)
    times = sigmas(10, 3.0, "diffusers")
    step = sum(t - after for t, after in pairwise(times)) / 10
    assert loss.image.beta == pytest.approx(0.01 * step)  # their KL is |dt| times ours
    assert (settings.screen.group_size, settings.screen.threshold) == (24, "none")
    assert (settings.prompts_per_step, settings.seed, settings.optimizer.lr) == (48, 42, 3e-4)
    assert settings.optimizer.ema == pytest.approx(0.9 ** (1 / 8), abs=5e-4)
    assert settings.reward_batch_size == settings.loss.micro_batch  # equal batches: ratios start at exactly 1
    assert set(settings.rewards.scorers) == {"pickscore"}
    assert {one.kind for one in load_service(CONFIGS / "sd35_flow_grpo.toml", {}).scorers.values()} == {
        "pickscore",
        "image_reward",
    }


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_unirl_zero_has_its_authors_values(number: int) -> None:
    """Those of its paper, and of scripts/train/rl and the trainer in its public code."""
    settings = load(CONFIGS / f"unirl_zero_{number}.toml", {})
    policy, loss = settings.policy, settings.loss
    assert isinstance(policy, FlowSettings)
    edits, talks = number in (4, 6), number in (5, 6)
    sampler = policy.sampler
    assert (sampler.denoising_steps, sampler.eta, sampler.shift, sampler.schedule) == (10, 0.7, 3.0, "diffusers")
    assert (sampler.guidance_scale, sampler.guidance_reference) == (3.0 if edits else 3.5, 1.0)
    assert (policy.edits, policy.language is not None) == (edits, talks)
    assert policy.trained == (("text", "image") if talks else ("image",))
    assert settings.screen.group_size == settings.reward_batch_size == loss.micro_batch == 8
    assert (loss.image.clip, loss.image.beta) == (1e-4, 3e-4 if number == 4 else 4e-3)
    assert (loss.scale, loss.normalise, loss.advantage_clamp, loss.credit) == (
        "own_length",
        "group_std_paper",
        5,
        "total",
    )
    assert (loss.image.lr or settings.optimizer.lr) == (3e-6 if talks else 1e-5)
    if talks:
        assert policy.language is not None
        assert policy.language.max_new_tokens == 512
        assert (loss.text.lr, loss.text.beta, loss.text.alpha, loss.image.alpha) == (5e-7, 0.01, 1.0, 1.0)
    edited = {"clip_direction": 4.0, "quality": 0.0, "clip_i": 1.0}  # the public code has no third term
    weights = edited if number == 4 else dict.fromkeys(settings.rewards.weights, 1.0)
    assert settings.rewards.weights == weights
    served = load_service(CONFIGS / f"unirl_zero_{number}.toml", {}).scorers
    assert set(weights) == set(served)
    needs = {name: scorers.spec(name, one).needs for name, one in served.items()}
    assert Served(needs, {}).problems(wanted_rewards(settings)) == []  # also reads every line and image


def test_embedded_flow_has_unirl_zeros_values() -> None:
    """But for the group of 2 x 8, guidance and the learning rate, which fit the small model."""
    settings = load(CONFIGS / "embedded_flow.toml", {})
    assert isinstance(settings.policy, FlowSettings)
    sampler, loss = settings.policy.sampler, settings.loss
    assert (sampler.denoising_steps, sampler.eta, sampler.schedule, sampler.evaluation_steps) == (10, 0.7, "once", 20)
    assert (loss.image.clip, loss.image.beta, loss.normalise) == (1e-4, 4e-3, "group_std")
    size = settings.screen.group_size
    assert size == 8
    assert settings.reward_batch_size == settings.screen.preview_batch_size == loss.micro_batch == size
    served = load_service(CONFIGS / "embedded_flow.toml", {}).scorers
    assert set(settings.rewards.weights) < set(served)


def test_unirl_zero_embedded_has_the_papers_values() -> None:
    """Those of scenario 5, but for what fits the small models: groups, guidance, equal steps, and learning rates."""
    own, paper = (load(CONFIGS / f"unirl_zero_{name}.toml", {}) for name in ("embedded", "5"))
    for one in (own, paper):
        assert isinstance(one.policy, FlowSettings)
        assert (one.policy.sampler.denoising_steps, one.policy.sampler.eta) == (10, 0.7)
    for modality in ("text", "image"):
        a, b = getattr(own.loss, modality), getattr(paper.loss, modality)
        assert (a.alpha, a.clip, a.beta) == (b.alpha, b.clip, b.beta)
    assert (own.loss.scale, own.loss.credit) == (paper.loss.scale, paper.loss.credit)
    assert own.rewards.terms == paper.rewards.terms
    assert isinstance(own.data, PromptSettings)
    assert own.data.query == REFINE
    served = load_service(CONFIGS / "unirl_zero_embedded.toml", {}).scorers
    kinds = {"geneval", "format", "recognition", "reflection", "clip_direction", "clip_i"}
    assert {one.kind for one in served.values()} == kinds


@pytest.mark.parametrize("name", ["gvu_train", "gvu_embedded"])
def test_gvu_has_its_papers_values(name: str) -> None:
    """LoRA, beta and learning rate of the public code; its groups of 2 are refused (docs/training.md)."""
    settings = load(CONFIGS / f"{name}.toml", {})
    lora = settings.policy.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (8, 32)
    assert settings.rewards.weights == {"intrinsic": 1.0, "geneval": 0.0}
    assert (settings.rewards.teacher, settings.is_own_teacher) == ("reference", True)
    assert (settings.loss.normalise, settings.loss.image.beta, settings.loss.text.beta) == ("group_std", 0.03, 0.0)
    assert settings.screen.threshold == "none"
    assert name == "gvu_embedded" or settings.optimizer.lr == 1e-6
    with pytest.raises(SettingsError, match="which gives two rewards"):
        load(CONFIGS / f"{name}.toml", {"SYNOD__TRAINER__SCREEN__GROUP_SIZE": "3"})


def test_prompts_for_training_are_none_of_genevals() -> None:
    for train, heldout in (
        (CONFIGS / "geneval_train.jsonl", ROOT / "trainer/evaluate/geneval_prompts.jsonl"),
        (DATA / "geneval_train.jsonl", DATA / "geneval_heldout.jsonl"),
    ):
        own, others = (read_prompts(path, "prompt", pytest.fail) for path in (train, heldout))
        assert all(one.geneval is not None for one in (*own, *others))
        assert not {one.text for one in own} & {one.text for one in others}
        assert {one.tag for one in own} <= {one.tag for one in others}


def test_a_group_without_a_screen_draws_nothing_more() -> None:
    screen = load(CONFIGS / "mask_grpo.toml", {}).screen
    assert screen.group_size == screen.preview_batch_size == screen.max_previews


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_policy_gets_no_concept_tokens(name: str) -> None:
    """Its tokenizer would split them."""
    data = load(CONFIGS / f"{name}.toml", {}).data
    assert isinstance(data, PromptSettings)
    assert data.heldout is not None
    prompts, heldout = (read_prompts(path, data.column, pytest.fail) for path in (data.prompts, data.heldout))
    assert len(prompts) >= 48
    assert len(heldout) >= 16
    assert not {one.text for one in prompts} & {one.text for one in heldout}
    assert not [one.text for one in (*prompts, *heldout) if "<" in one.text]


def test_the_example_of_personalization_loads() -> None:
    settings = load_personalize(CONFIGS / "personalize.toml", {})
    assert settings.data.parent.name == "train"
    assert settings.policy.concepts == ()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_many_processes_have_more_time_to_start(path: Path) -> None:
    """Each imports its libraries, and all do so at once."""
    settings = load_service(path, {})
    if len(settings.hosts) > 4:
        assert settings.cluster.ready_timeout_s > type(settings.cluster)().ready_timeout_s
