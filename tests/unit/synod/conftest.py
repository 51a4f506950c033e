"""Property tests (the same examples on every machine, no limit on an example's time), and a real plane."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.synod.planes import Bright, Plane, serving

settings.register_profile("synod", deadline=None, derandomize=True)
settings.load_profile("synod")


@pytest.fixture
def plane() -> Iterator[Plane]:
    """Scorers ber (image, prompt), der (image, references), tier (reasoning); the ensemble council of ber and der."""
    with serving(Bright("ber"), Bright("der", ("image", "references")), Bright("tier", ("reasoning",))) as one:
        yield one
