"""The reward service as the trainer uses it: wait for an unavailable service, mask a missing score.

A missing score is `Reward(None, ..., failure)`, which masks the rollout; no number stands in for it.

    service unavailable, overloaded or restarting    retry with growing pauses, for `patience_s` at most
    an item fails retryably                          retry the item up to ITEM_RETRIES times, then mask it
    an item fails otherwise, or its deadline passes  mask it
    internal error of the service                    mask the request's items
    invalid request, such as an unknown scorer       raise: no retry can succeed
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
THREADS: Final = 16  # enough for all requests of a step at once: the service batches across requests


class RewardService:
    """A thread-safe client that survives a failing, slow or restarting service.

    `log` receives messages for the user; `transport` is for tests. `close` it when training ends.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        transport: httpx.BaseTransport | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self._settings, self._log = settings, log
        self._client = SynodClient(settings.url, timeout_s=REQUEST_TIMEOUT_S, retries=0, transport=transport)
        self._pool = ThreadPoolExecutor(THREADS, "rewards")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._unavailable_since: float | None = None

    def wait_ready(self) -> None:
        """Return once every replica can score.

        Raises RewardServiceUnavailable, which names what is missing, after `patience_s`.
        """
        began = time.monotonic()
        while True:
            try:
                self._client.wait_ready(min(1.0, self._settings.patience_s))
            except Unavailable as error:
                self._wait(error, began, BACKOFF.backoff_s(0))
            else:
                return self._log_recovery()

    def score_previews(self, items: Sequence[ScoreItem]) -> list[Reward]:
        """Return the surrogate scores of previews, in order.

        Raises RewardServiceUnavailable, and InvalidRequest.
        """
        return self._rewards(items, SURROGATE, None)

    def submit(self, items: Sequence[ScoreItem], pathway: Pathway) -> Future[list[Reward]]:
        """Request the rewards of finished images, in order: the ensemble's, or GenEval's on pathway "none".

        The future raises what `score_previews` does.
        """
        if pathway == "none":
            return self._pool.submit(self._rewards, tuple(items), GENEVAL, None)
        return self._pool.submit(self._rewards, tuple(items), None, self._settings.ensemble)

    def close(self) -> None:
        """Cancel pending requests and close the connections."""
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
        self._log_missing(found)
        return found

    def _ask(self, request: ScoreRequest) -> list[Reward]:
        """Send a request until the service answers it."""
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
                self._log_recovery()
                return [_reward(result, request) for result in response.results]

    def _wait(self, error: Unavailable, began: float, pause_s: float) -> None:
        """Pause before a retry. Raises RewardServiceUnavailable after `patience_s`."""
        now = time.monotonic()
        with self._lock:
            first, self._unavailable_since = self._unavailable_since is None, self._unavailable_since or began
        patience_s = self._settings.patience_s
        if first:
            self._log(f"waiting up to {patience_s:g} s for the reward service: {error}")
        if now - began + pause_s > patience_s or self._closing.wait(pause_s):
            raise RewardServiceUnavailable(
                f"the reward service at {self._settings.url} was unavailable for {now - began:.0f} s ({error}); "
                f"[trainer.service] patience_s is {patience_s:g}. Start it (`make up`) and train again: the run "
                "resumes from its last checkpoint"
            ) from error

    def _log_recovery(self) -> None:
        with self._lock:
            since, self._unavailable_since = self._unavailable_since, None
        if since is not None:
            self._log(f"the reward service has recovered after {time.monotonic() - since:.0f} s")

    def _log_missing(self, rewards: Sequence[Reward]) -> None:
        failures = [reward.failure for reward in rewards if reward.failure is not None]
        if failures:
            first = failures[0]
            self._log(f"{len(failures)} of {len(rewards)} scores are missing, first: {first.code}: {first.message}")


def _may_recover(reward: Reward | None) -> bool:
    """Return whether to retry: a lost replica or full queue may recover, a passed deadline does not."""
    failure = None if reward is None else reward.failure
    return failure is not None and failure.retryable and failure.code != DeadlineExceeded.code


def _reward(result: ItemResult, request: ScoreRequest) -> Reward:
    components = {name: score.value for name, score in result.scores.items() if isinstance(score, Score)}
    outcome: Outcome | None = result.reward if request.ensemble else result.scores[request.scorers[0]]
    if isinstance(outcome, Score):
        return Reward(outcome.value, components)
    absent = ScoreFailure(SynodError.code, "the response holds no reward")
    return Reward(None, components, outcome or absent)
