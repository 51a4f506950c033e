"""A small set of prompts and concepts on disk, and settings for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.trainer.tiny_run import TINY, make_settings, write_data
from tests.unit.trainer.tiny_show_o import image, make_policy, policy, tokenizer_of, uniforms, vocab, vq  # noqa: F401
from trainer.settings import TrainerSettings

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")


@pytest.fixture(autouse=True)
def keep_all_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.KEEP", 9)


@pytest.fixture
def world_dir(tmp_path: Path) -> Path:
    """prompts.jsonl, and concepts/bo with two images."""
    write_data(tmp_path)
    return tmp_path


@pytest.fixture
def settings_from(world_dir: Path) -> Callable[..., TrainerSettings]:
    """`settings_from("[trainer.loss]\\nbeta = 0.5", STEPS="7")`: the smallest TOML, added text, and overrides."""
    (world_dir / "model").mkdir()
    return lambda text="", **overrides: make_settings(world_dir, text, overrides)


@pytest.fixture
def tiny_settings(settings_from: Callable[..., TrainerSettings]) -> Callable[..., TrainerSettings]:
    """`tiny_settings(STEPS="2")`: for the tiny Show-o, four denoising steps, groups of four, with overrides.

    Screens are not audited, so that tests can count what is drawn; "auto" has to be.
    """

    def make(**overrides: str) -> TrainerSettings:
        unaudited = {} if "auto" in overrides.get("SCREEN__SELECT", "") else {"SCREEN__AUDIT": "0"}
        return settings_from(TINY, **{"REWARDS__SURROGATE": "ber", **unaudited, **overrides})

    return make
