"""How much of a reward a half-drawn image decides: what no surrogate of that image can exceed. Pure."""

from __future__ import annotations

from torch import Tensor


def explained_share(reward_CR: Tensor) -> float | None:
    """Return the share of the rewards' variance that R states explain, from C completions of each; None without spread.

    A random-effects analysis of variance: within = the mean over states of the variance of their completions, between =
    the variance of the states' means - within / C. Both estimates are unbiased, so the share may be below 0 where
    states explain little. The square root of its mean over prompts bounds the correlation of the reward with any
    function of the state, on average. Raises ValueError for fewer than two completions or states.
    """
    if reward_CR.dim() != 2 or min(reward_CR.shape) < 2:
        raise ValueError(f"rewards are {list(reward_CR.shape)}; give two completions or more of two states or more")
    reward_CR = reward_CR.double()
    within = float(reward_CR.var(0).mean())
    between = float(reward_CR.mean(0).var()) - within / len(reward_CR)
    total = between + within
    return between / total if total > 1e-12 else None
