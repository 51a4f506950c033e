"""The share that states explain: by hand, against a simulation, and as a bound of correlations."""

from __future__ import annotations

import pytest
import torch

from trainer.algorithms.ceiling import explained_share


def test_a_table_by_hand() -> None:
    """States 1 and 3 with completions +-1: within 2, means 1 and 3 with variance 2, between 2 - 2/2 = 1; share 1/3."""
    assert explained_share(torch.tensor([[0.0, 2.0], [2.0, 4.0]])) == pytest.approx(1 / 3)


def test_states_that_decide_all_or_nothing() -> None:
    assert explained_share(torch.tensor([[0.0, 1.0, 5.0]] * 3)) == pytest.approx(1.0)
    # equal means: between = 0 - 2/2
    assert explained_share(torch.tensor([[0.0, 0.0], [2.0, 2.0]])) == pytest.approx(-1.0)
    assert explained_share(torch.full((2, 3), 0.5)) is None


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_estimate_has_no_bias(share: float) -> None:
    """States of variance `share` and completions of the rest, in 4000 tables of 3 completions of 16 states."""
    draw = torch.Generator().manual_seed(0)
    state = share**0.5 * torch.randn(4000, 1, 16, generator=draw, dtype=torch.float64)
    rest = (1 - share) ** 0.5 * torch.randn(4000, 3, 16, generator=draw, dtype=torch.float64)
    found = [explained_share(one) or 0.0 for one in state + rest]
    assert sum(found) / len(found) == pytest.approx(share, abs=0.03)


def test_one_completion_or_state_is_refused() -> None:
    for shape in ((1, 4), (4, 1), (4,)):
        with pytest.raises(ValueError, match="two completions or more"):
            explained_share(torch.zeros(shape))
