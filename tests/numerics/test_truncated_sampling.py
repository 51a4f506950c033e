"""A sampler that leaves tokens out samples another distribution than the one whose log-probabilities it records.

GvU's public code samples by min-p (tokens below .03 of the likeliest are left out), and learns log-probabilities among
all tokens. Its mean score E[d log p] is then not 0, so that even a reward without any signal sharpens the policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.policy.show_o import maskgit

MIN_P = 0.03
LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -1.8, -2.2, 0.0])
COUNT = 20_000
GRID = (torch.arange(COUNT) + 0.5) / COUNT  # of random numbers in (0, 1)


def mean_score(sampled: Tensor, learnt: Tensor) -> Tensor:
    """The mean of d log `learnt`[token] by its logits, over tokens that are drawn from `sampled`."""
    drawn = maskgit.draw(sampled.log().expand(COUNT, -1), GRID)
    return torch.bincount(drawn, minlength=len(sampled)) / COUNT - learnt


def test_a_truncated_sampler_needs_its_own_log_probabilities() -> None:
    p = LOGITS.softmax(-1)
    kept = p >= MIN_P * p.max()
    assert int((~kept).sum()) == 2
    q = (p * kept) / (p * kept).sum()
    assert mean_score(p, p).abs().max() < 2 / COUNT  # ours: unlikely tokens are drawn as often as they are likely
    assert mean_score(q, q).abs().max() < 2 / COUNT  # a truncated sampler that learns what it samples
    theirs = mean_score(q, p)
    assert torch.allclose(theirs, q - p, atol=2 / COUNT)
    assert theirs[~kept].max() < -0.008
    assert theirs[0] > 0.01  # the likeliest token grows, whatever the reward
