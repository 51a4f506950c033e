"""Early stop by hand, and against the whole history of means."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithms.early_stop import EarlyStop


def test_evaluations_since_the_best_are_counted() -> None:
    record = EarlyStop()
    seen = []
    for mean in (-0.5, -0.4, None, -0.4, -0.45, -0.3):
        record = record.update(mean)
        seen.append((record.best, record.since))
    assert seen == [(-0.5, 0), (-0.4, 0), (-0.4, 0), (-0.4, 1), (-0.4, 2), (-0.3, 0)]
    assert not EarlyStop().is_due(1)
    assert [EarlyStop(1.0, since).is_due(2) for since in range(4)] == [False, False, True, True]


@given(st.lists(st.none() | st.integers(0, 5).map(float), max_size=12), st.integers(0, 12))
def test_a_resumed_record_equals_the_whole_one(means: list[float | None], cut: int) -> None:
    whole = EarlyStop()
    for mean in means:
        whole = whole.update(mean)
    resumed = EarlyStop()
    for mean in means[:cut]:
        resumed = resumed.update(mean)
    resumed = EarlyStop(**json.loads(json.dumps(asdict(resumed))))
    for mean in means[cut:]:
        resumed = resumed.update(mean)
    assert resumed == whole
    measured = [mean for mean in means if mean is not None]
    assert whole.best == max(measured, default=None)
    assert whole.since == (len(measured) - 1 - measured.index(max(measured)) if measured else 0)


@pytest.mark.parametrize("mean", [math.nan, math.inf])
def test_a_mean_that_is_not_finite_is_refused(mean: float) -> None:
    with pytest.raises(ValueError, match=f"watched mean is {mean}"):
        EarlyStop().update(mean)
