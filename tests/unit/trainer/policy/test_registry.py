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


def test_the_gains_of_norms_are_trained_alone(policy: ShowO, tmp_path: Path) -> None:
    policy.save(tmp_path)
    found = registry.load(ShowOSettings.model_validate({"model": str(tmp_path), "train": "norms"}))
    trained = {name for name, parameter in found.module.named_parameters() if parameter.requires_grad}
    assert trained == {
        name for name, _ in policy.module.named_parameters() if "norm" in name and name.endswith(".weight")
    }
    assert len(trained) == 2 * 3 + 1  # of each block: input, queries and keys; and the last one
    assert sum(map(len, (group.parameters for group in found.parameter_groups()))) == len(trained)


def test_adapters_and_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="train 'norms' and lora name different parameters to train; remove one"):
        ShowOSettings.model_validate({"model": "a/b", "train": "norms", "lora": {}})
