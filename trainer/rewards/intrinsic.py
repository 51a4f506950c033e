"""GvU's intrinsic reward: how likely the policy itself finds the prompt, when it is asked what the image shows.

    R = (prod_j p(t_j | image, question, t_<j))^(1/L) = exp(mean_j log p(t_j | ..))          (GvU, arXiv 2603.06043)

over the L tokens of the prompt, in one teacher-forced pass and without a gradient. The policy reads the decoded image,
which it tokenises again, as in GvU. Differences from its public code: that multiplies probabilities, one forward pass
for each token, and the product of a long prompt is 0 in floating point; and its teacher is the current policy, which
may learn images that only it finds fitting. Here the teacher is the frozen reference by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from synod.contracts import ScoreFailure, ScoreItem
from synod.errors import InvalidItem, NonFinite, SettingsError
from trainer.clock import Clock
from trainer.policy.base import Policy, Reader, TokenLogp
from trainer.rewards.base import RewardBackend
from trainer.rewards.terms import added, done
from trainer.settings import INTRINSIC, TrainerSettings
from trainer.types import Query, Reward, RewardSpec

QUESTION: Final = "Describe the image in detail."
READ_PREVIEWS: Final = "read_previews"  # the phase in which previews are read; that of finished images is INTRINSIC


def with_intrinsic(service: RewardBackend, policy: Policy, settings: TrainerSettings, clock: Clock) -> RewardBackend:
    """Return the service, behind a backend that scores `intrinsic` by the policy if the settings ask for that."""
    if not settings.is_own_teacher:
        return service
    if not isinstance(policy, Reader):
        raise SettingsError(
            f"scorer '{INTRINSIC}' asks the policy about its images, but {settings.policy.model} has no language "
            "model; give policy.language, or rewards.teacher = 'service' and a scorer of that name there"
        )
    by_reference = settings.rewards.teacher == "reference"
    return IntrinsicRewards(service, policy, clock, by_reference=by_reference, surrogate=settings.rewards.surrogate)


class IntrinsicRewards:
    """A RewardBackend that scores `intrinsic` by a policy, and asks the service for every other scorer.

    `by_reference`: by the policy's frozen reference, which training cannot change; else by the current policy.
    `surrogate` is the scorer of previews. The policy reads while the service scores, on the thread that submits: its
    time is the phase INTRINSIC of the clock, and READ_PREVIEWS that of previews.
    """

    def __init__(
        self, service: RewardBackend, policy: Reader, clock: Clock, *, by_reference: bool, surrogate: str = ""
    ) -> None:
        self._service, self._policy, self._clock = service, policy, clock
        self._by_reference, self._surrogate = by_reference, surrogate

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        """Request the surrogate scores of previews; terms of items without an image are the service's alone."""
        if reward is None and self._surrogate == INTRINSIC:
            reward = RewardSpec({INTRINSIC: 1.0})
        if reward is None or INTRINSIC not in reward.scorers:
            return self._service.submit_previews(items, reward)
        others = reward.without(INTRINSIC)
        if any(item.image is None for item in items):
            return done([Reward(None)] * len(items)) if others is None else self._service.submit_previews(items, others)
        asked = [] if others is None else [self._service.submit_previews(items, others)]
        return added([*asked, self._read(items, reward.scorers[INTRINSIC], READ_PREVIEWS)])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        """Request the rewards of finished images, in order. The future raises what the service's does."""
        if INTRINSIC not in reward.scorers:
            return self._service.submit(items, reward)
        others = reward.without(INTRINSIC)
        asked = [] if others is None else [self._service.submit(items, others)]
        return added([*asked, self._read(items, reward.scorers[INTRINSIC], INTRINSIC)])

    def _read(self, items: Sequence[ScoreItem], weight: float, phase: str) -> Future[list[Reward]]:
        """Return the term of each item, in a future that is done."""
        queries = [Query(QUESTION, item.pixels()) for item in items]
        with self._clock(phase), self._policy.reference() if self._by_reference else nullcontext():
            read = self._policy.token_logps(queries, [item.prompt or "" for item in items])
        return done([_term(item, one, weight) for item, one in zip(items, read, strict=True)])


def likelihood(found: TokenLogp) -> float:
    """Return the geometric mean of the tokens' probabilities, in [0, 1]."""
    return math.exp(min(0.0, math.fsum(found.values) / len(found.values)))


def _term(item: ScoreItem, found: TokenLogp, weight: float) -> Reward:
    """Return the weighted score; missing for a prompt without tokens and for a probability that is not finite."""
    error: InvalidItem | NonFinite
    if not found.tokens:
        error = InvalidItem(f"the policy's tokenizer makes no token of the prompt {item.prompt!r}; give it words")
    elif not all(map(math.isfinite, found.values)):
        error = NonFinite("the policy gave a token of the prompt a log-probability that is not finite")
    else:
        score = likelihood(found)
        tokens = tuple(zip(found.tokens, found.values, strict=True))
        return Reward(weight * score, {INTRINSIC: score}, fixed={}, tokens=tokens)
    failed = Reward(None, failure=replace(ScoreFailure.of(error), message=f"{INTRINSIC}: {error}"))
    return failed if weight else Reward(0.0, fixed={})
