"""Settings of property tests (deterministic, without a time limit per example), and a real service."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.synod.reward_services import Bright, RewardService, serving

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")


@pytest.fixture
def service() -> Iterator[RewardService]:
    """Serve ber (image, prompt), der (image, references), tier (reasoning), and the ensemble council."""
    with serving(Bright("ber"), Bright("der", ("image", "references")), Bright("tier", ("reasoning",))) as one:
        yield one
