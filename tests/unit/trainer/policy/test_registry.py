"""A policy is loaded with what its settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.policy import registry
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.settings import ShowOSettings


@pytest.mark.parametrize(
    "given",
    [{}, {"dtype": "bfloat16"}, {"checkpointing": True}, {"positions": "all"}, {"sampler": {"confidence": "max_logp"}}],
)
def test_show_o_has_its_settings(policy: ShowO, tmp_path: Path, given: dict[str, object]) -> None:
    policy.save(tmp_path)
    settings = ShowOSettings.model_validate({"model": str(tmp_path), **given})
    found = registry.load(settings)
    assert isinstance(found, ShowO)
    assert found.dtype == given.get("dtype", "float32")
    assert found.phi.checkpointing is given.get("checkpointing", False)
    assert found.sampling == Sampling(positions=settings.positions, confidence=settings.sampler.confidence)
