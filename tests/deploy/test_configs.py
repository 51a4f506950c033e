"""The settings in deploy/configs: what each states of its paper, and that a policy can read its prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.settings import load as load_service
from trainer.data.prompts import read_prompts
from trainer.settings import PromptSettings, load, load_personalize

CONFIGS = Path(__file__).parents[2] / "deploy/configs"
PUBLISHED = ["mask_grpo", "sync_r1_paper"]  # they train a published Show-o


def test_mask_grpo_has_its_authors_values() -> None:
    """Those of code/configs/Mask_GRPO_train_512x512.yaml and code/models/modeling_showo.py."""
    settings = load(CONFIGS / "mask_grpo.toml", {})
    assert settings.policy.model == "showlab/show-o-512x512"
    assert (settings.policy.sampler.denoising_steps, settings.policy.sampler.guidance_scale) == (50, 0.0)
    assert (settings.screen.group_size, settings.screen.threshold) == (6, "none")
    assert not settings.loss.needs_reference  # no KL term
    assert settings.loss.normalise == "group_std"
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.schedule) == (3e-6, 1000, "cosine")
    assert (settings.steps, settings.seed, settings.prompts_per_step) == (16000, 42, 16)
    assert (settings.policy.dtype, settings.policy.checkpointing) == ("bfloat16", True)
    assert set(settings.evaluate.scorers) == {"image_reward"}
    assert set(settings.rewards.scorers) == {"clip_t"}
    served = load_service(CONFIGS / "mask_grpo.toml", {}).scorers
    assert {one.kind for one in served.values()} == {"clip_t", "image_reward"}


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
