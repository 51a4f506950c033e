"""Tiny random pipelines, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.tiny_flow import Family, write_pipeline
from trainer.policy.flow import loading
from trainer.policy.flow.policy import FlowPolicy
from trainer.policy.flow.segments import Sampler

Load = Callable[..., FlowPolicy]


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    """The directories of a tiny SANA and a tiny Stable Diffusion 3."""
    folder = tmp_path_factory.mktemp("pipelines")
    families: tuple[Family, ...] = ("sana", "sd3")
    return {family: write_pipeline(folder / family, family) for family in families}


@pytest.fixture
def load(pipelines: dict[Family, Path]) -> Load:
    """`load("sana", guidance_scale=2.0)`: a tiny policy of four steps."""

    def loaded(family: Family, **options: Any) -> FlowPolicy:
        given = {"sampler": Sampler.of(4, shift=3.0, eta=0.7), "guidance_scale": 3.0, "max_text_length": 6, **options}
        return loading.load(pipelines[family], **given)

    return loaded
