"""The benchmark of confidences compares evaluations whose conditions differ by the confidence."""

from __future__ import annotations

import pytest

from benchmarks.confidence import compare
from synod.errors import SettingsError
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy, MakeSettings
from tests.unit.trainer.reward_services import Judge
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer.evaluate.compare import paired
from trainer.evaluate.heldout import evaluate, held_out


def test_two_confidences_are_compared_image_by_image(
    make_policy: MakePolicy,  # noqa: F811
    tiny_settings: MakeSettings,  # noqa: F811
) -> None:
    evaluations = []
    for confidence in ("drawn", "max_logp"):
        settings = tiny_settings(POLICY__SAMPLER__CONFIDENCE=confidence, EVALUATE__PROMPTS="8")
        policy = make_policy(confidence=confidence)
        evaluations.append(evaluate(policy, Judge(), held_out(settings), settings))
    with pytest.raises(SettingsError):
        paired(*evaluations)
    found = compare(*evaluations)["reward"]
    assert (found.n, found.dropped) == (8, 0)
    assert found.difference is not None
    assert found.difference != 0
