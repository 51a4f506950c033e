"""The reward service as the trainer meets it: waits while it is away, masks what it cannot score, and says so.

A missing score is `Reward(None, ..., failure)`: a mask for the advantage, never a number.

    the service is away, full or restarting       asked again with growing pauses, up to `patience_s`; then
    RewardServiceUnavailable
    an item's score failed, retryably           the item is asked again up to ITEM_RETRIES times; then masked
    an item's score failed, or time ran out     masked
    the service broke on the request as a whole   masked
    the request is wrong (unknown scorer ..)    raised: no later request will do better
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import httpx

from synod.client import SynodClient
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import DeadlineExceeded, InvalidRequest, SynodError, Unavailable
from synod.retry import RetryPolicy
from trainer.errors import RewardServiceUnavailable
from trainer.settings import ServiceSettings
from trainer.types import Pathway, Reward

BACKOFF: Final = RetryPolicy(base_s=0.25, max_s=5.0)
ITEM_RETRIES: Final = 9  # pauses of 14 s in all on average, in which a lost replica is replaced
SURROGATE: Final = "ber"  # the scorer of previews
GENEVAL: Final = "geneval"  # the scorer of prompts without a concept
REQUEST_TIMEOUT_S: Final = 60.0
THREADS: Final = 16  # requests in flight, so that all of a step's are: the service batches across them


class RewardService:
    """A client that outlasts a failing, slow or restarting service. `say` tells the user; `transport` is for tests.

    Thread-safe. Use it as long as the training runs and `close` it.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        transport: httpx.BaseTransport | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._settings, self._say = settings, say
        self._client = SynodClient(settings.url, timeout_s=REQUEST_TIMEOUT_S, retries=0, transport=transport)
        self._pool = ThreadPoolExecutor(THREADS, "rewards")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def wait_ready(self) -> None:
        """Return once every replica can score.

        Raises RewardServiceUnavailable after `patience_s`, saying what is missing.
        """
        began = time.monotonic()
        while True:
            try:
                self._client.wait_ready(min(1.0, self._settings.patience_s))
            except Unavailable as error:
                self._wait(error, began, BACKOFF.backoff_s(0))
            else:
                return self._is_back()

    def surrogate(self, items: Sequence[ScoreItem]) -> list[Reward]:
        """Scores of previews by the surrogate, in order.

        Raises RewardServiceUnavailable; InvalidRequest for a wrong request.
        """
        return self._rewards(items, SURROGATE, None)

    def submit(self, items: Sequence[ScoreItem], pathway: Pathway) -> Future[list[Reward]]:
        """Rewards of finished images, in order, as they come: the ensemble's, or GenEval's on pathway "none".

        The future raises what `surrogate` does.
        """
        if pathway == "none":
            return self._pool.submit(self._rewards, tuple(items), GENEVAL, None)
        return self._pool.submit(self._rewards, tuple(items), None, self._settings.ensemble)

    def close(self) -> None:
        """Give up what is waiting and close the connections."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _rewards(self, items: Sequence[ScoreItem], scorer: str | None, ensemble: str | None) -> list[Reward]:
        request = ScoreRequest((), () if scorer is None else (scorer,), ensemble)
        rewards: list[Reward | None] = [None] * len(items)
        left = list(range(len(items)))
        for attempt in range(ITEM_RETRIES + 1):
            if not left or (attempt and self._closing.wait(BACKOFF.backoff_s(attempt - 1))):
                break
            for i, reward in zip(left, self._ask(replace(request, items=tuple(items[i] for i in left))), strict=True):
                rewards[i] = reward
            left = [i for i in left if _may_recover(rewards[i])]
        found = [reward for reward in rewards if reward is not None]
        assert len(found) == len(items)
        self._tell_masked(found)
        return found

    def _ask(self, request: ScoreRequest) -> list[Reward]:
        """One request, sent until a service answers it."""
        began, attempt = time.monotonic(), 0
        while True:
            try:
                response = self._client.score(request)
            except InvalidRequest:
                raise
            except SynodError as error:
                if not isinstance(error, Unavailable) or isinstance(error, DeadlineExceeded):
                    return [Reward(None, failure=ScoreFailure.of(error))] * len(request.items)
                self._wait(error, began, BACKOFF.backoff_s(attempt))
                attempt += 1
            else:
                self._is_back()
                return [_reward(result, request) for result in response.results]

    def _wait(self, error: Unavailable, began: float, pause_s: float) -> None:
        """Say once that the service is away, and pause. Raises RewardServiceUnavailable when patience is at its end."""
        now = time.monotonic()
        with self._lock:
            first, self._away_since = self._away_since is None, self._away_since or began
        patience_s = self._settings.patience_s
        if first:
            self._say(f"waiting up to {patience_s:g} s for the reward service: {error}")
        if now - began + pause_s > patience_s or self._closing.wait(pause_s):
            raise RewardServiceUnavailable(
                f"the reward service at {self._settings.url} was away for {now - began:.0f} s ({error}). Start it "
                "(`make up`) and train again: the run goes on from its last checkpoint. [trainer.service] patience_s "
                f"({patience_s:g}) bounds the wait"
            ) from error

    def _is_back(self) -> None:
        with self._lock:
            since, self._away_since = self._away_since, None
        if since is not None:
            self._say(f"the reward service is back after {time.monotonic() - since:.0f} s")

    def _tell_masked(self, rewards: Sequence[Reward]) -> None:
        failures = [reward.failure for reward in rewards if reward.failure is not None]
        if failures:
            first = failures[0]
            self._say(f"{len(failures)} of {len(rewards)} scores are missing, first: {first.code}: {first.message}")


def _may_recover(reward: Reward | None) -> bool:
    """A lost replica or a full queue may do better soon; a deadline that passed has used its time."""
    failure = None if reward is None else reward.failure
    return failure is not None and failure.retryable and failure.code != DeadlineExceeded.code


def _reward(result: ItemResult, request: ScoreRequest) -> Reward:
    components = {name: score.value for name, score in result.scores.items() if isinstance(score, Score)}
    outcome: Outcome | None = result.reward if request.ensemble else result.scores[request.scorers[0]]
    if isinstance(outcome, Score):
        return Reward(outcome.value, components)
    absent = ScoreFailure(SynodError.code, "the answer holds no reward")
    return Reward(None, components, outcome or absent)
