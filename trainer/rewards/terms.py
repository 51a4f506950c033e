"""The terms of a reward: each result of a rollout is scored by the scorers that name it, and their sum is the reward.

UniRL-Zero (arXiv 2510.17937) rewards the reply, the image, or in a cycle edit two images. The terms are added as they
are, without clipping: an edit that goes the wrong way costs what its direction says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from synod.contracts import ScoreItem
from trainer.rewards.base import RewardBackend
from trainer.types import Result, Reward, RewardSpec

Items = Mapping[Result, ScoreItem]  # of one rollout


def submit_terms(service: RewardBackend, items: Sequence[Items], reward: RewardSpec) -> Future[list[Reward]]:
    """Request the rewards of finished rollouts, in order, by one request for each result that the reward names.

    The future raises what `RewardBackend.submit`'s does.
    """
    parts = reward.parts()
    pending = [service.submit([one[of] for one in items], part) for of, part in parts.items()]
    return pending[0] if len(pending) == 1 else added(pending)


def add(parts: Sequence[Reward]) -> Reward:
    """Return the sum of a rollout's rewards for its results; missing if one of them is.

    Its failure is one that no retry fixes, if there is such a one.
    """
    components = {name: value for part in parts for name, value in part.components.items()}
    tokens = next((part.tokens for part in parts if part.tokens), ())
    if any(part.value is None for part in parts):
        failures = [part.failure for part in parts if part.failure is not None]
        failure = min(failures, key=lambda one: one.retryable, default=None)
        return Reward(None, components, failure, tokens=tokens)
    value = math.fsum(part.value for part in parts if part.value is not None)
    known = [part.fixed for part in parts if part.fixed is not None]
    fixed = {name: term for one in known for name, term in one.items()} if len(known) == len(parts) else None
    official = next((part.official for part in parts if part.official is not None), None)
    return Reward(value, components, fixed=fixed, official=official, tokens=tokens)


def done(rewards: list[Reward]) -> Future[list[Reward]]:
    """Return a future that is done: of rewards that nothing needs to be asked for."""
    found: Future[list[Reward]] = Future()
    found.set_result(rewards)
    return found


def added(pending: Sequence[Future[list[Reward]]]) -> Future[list[Reward]]:
    """Return a future of the sums, which is done when all are; it raises what one of them raises."""
    sums: Future[list[Reward]] = Future()

    def follow(number: int) -> None:
        if number < len(pending):
            pending[number].add_done_callback(lambda _: follow(number + 1))
            return
        try:
            found = [one.result() for one in pending]
            sums.set_result([add(parts) for parts in zip(*found, strict=True)])
        except Exception as error:  # raised again where the rewards are awaited
            sums.set_exception(error)

    follow(0)
    return sums
