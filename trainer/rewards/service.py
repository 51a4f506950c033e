"""The reward service as the trainer uses it: wait for an unavailable service, mask a missing score.

A missing score is `Reward(None, ..., failure)`, which masks the rollout; no number stands in for it.

    service unavailable, overloaded or restarting    retry with growing pauses, for `patience_s` at most
    an item fails retryably                          retry the item up to ITEM_RETRIES times, then mask it
    an item fails otherwise, or its deadline passes  mask it
    internal error of the service                    mask the request's items
    invalid request, such as an unknown scorer       raise: no retry can succeed

A reward of several scorers is their weighted sum, negative scores included. It is missing if a scorer with a weight is
missing; a scorer of weight 0 is recorded and changes nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final, TypeVar

import httpx

from synod.client import SynodClient
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import DeadlineExceeded, InvalidRequest, NonFinite, SettingsError, SynodError, Unavailable
from synod.retry import RetryPolicy
from synod.values import total
from trainer.errors import RewardServiceUnavailable
from trainer.rewards.served import Served, Wanted
from trainer.settings import RewardSettings
from trainer.types import Reward, RewardSpec

T = TypeVar("T")
BACKOFF: Final = RetryPolicy(base_s=0.25, max_s=5.0)
ITEM_RETRIES: Final = 9  # pauses of 14 s in all on average, in which a lost replica is replaced
REQUEST_TIMEOUT_S: Final = 60.0
THREADS: Final = 16  # enough for all requests of a step at once: the service batches across requests


class RewardService:
    """A thread-safe client that survives a failing, slow or restarting service.

    `log` receives messages for the user; `transport` is for tests. `close` it when training ends. The `fixed` terms of
    rewards are known after `check_served`, which reads what each scorer needs.
    """

    def __init__(
        self,
        settings: RewardSettings,
        *,
        transport: httpx.BaseTransport | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self._settings, self._log = settings, log
        self._surrogate = RewardSpec({settings.surrogate: 1.0})
        self._client = SynodClient(settings.url, timeout_s=REQUEST_TIMEOUT_S, retries=0, transport=transport)
        self._preview_pool = ThreadPoolExecutor(THREADS, "previews")
        self._reward_pool = ThreadPoolExecutor(THREADS, "rewards")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._unavailable_since: float | None = None
        self._catalogue: Served | None = None

    def wait_ready(self) -> None:
        """Return once every replica can score.

        Raises RewardServiceUnavailable, which names what is missing, after `patience_s`.
        """
        within_s = min(1.0, self._settings.patience_s)
        self._until_available(lambda: self._client.wait_ready(within_s), growing=False)

    def check_served(self, wanted: Sequence[Wanted]) -> None:
        """Check that the service can give the rewards of a run.

        Raises SettingsError, which names what is wrong and what is served, and RewardServiceUnavailable.
        """
        served = self._catalogue = self._served()
        problems = served.problems(wanted)
        if problems:
            raise SettingsError(
                f"[trainer.rewards] does not fit the service at {self._settings.url}:\n  "
                + "\n  ".join(problems)
                + "\nChange the settings, or serve what is missing. Without a screen ([trainer.screen] threshold = "
                '"none") no surrogate is needed'
            )

    def _served(self) -> Served:
        """Return the service's catalogue. Raises RewardServiceUnavailable."""

        def read() -> Served:
            needs = {str(one["name"]): one.get("needs", ()) for one in self._client.scorers()}
            return Served(needs, self._client.ensembles())

        return self._until_available(read)

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        """Request the surrogate scores of previews, in order; they never wait behind requests for rewards.

        Without a `reward` they are those of the surrogate scorer. Items without an image need `check_served` before;
        their scores are missing if no term of the reward reads only text.
        The future raises RewardServiceUnavailable, and InvalidRequest.
        """
        if reward is None:
            return self._preview_pool.submit(self._rewards, tuple(items), self._surrogate)
        known = None
        if items and items[0].image is None:
            assert self._catalogue is not None, "check_served was not called"
            known = self._catalogue.known_weights(reward, items[0].concept)
            if not known:
                return self._preview_pool.submit(lambda: [Reward(None)] * len(items))
        return self._preview_pool.submit(self._rewards, tuple(items), reward, whole=True, weights=known)

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        """Request the rewards of finished images, in order. The future raises what `submit_previews`' does."""
        return self._reward_pool.submit(self._rewards, tuple(items), reward)

    def close(self) -> None:
        """Cancel pending requests and close the connections."""
        pools = (self._preview_pool, self._reward_pool)
        for pool in pools:  # before the requests that are being sent end, so that no further one is sent
            pool.shutdown(wait=False, cancel_futures=True)
        self._closing.set()
        for pool in pools:
            pool.shutdown(wait=True)
        self._client.close()

    def _rewards(
        self,
        items: Sequence[ScoreItem],
        spec: RewardSpec,
        *,
        whole: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> list[Reward]:
        """Return the rewards of the items, by these `weights` in place of the reward's own if given.

        `whole`: a reward that an ensemble computed without one of its terms is missing.
        """
        rewards: list[Reward | None] = [None] * len(items)
        left = list(range(len(items)))
        for attempt in range(ITEM_RETRIES + 1):
            if not left or (attempt and self._closing.wait(BACKOFF.backoff_s(attempt - 1))):
                break
            for i, reward in zip(left, self._ask([items[i] for i in left], spec, weights, whole), strict=True):
                rewards[i] = reward
            left = [i for i in left if _may_recover(rewards[i])]
        found = [reward for reward in rewards if reward is not None]
        assert len(found) == len(items)
        self._log_missing(found)
        return found

    def _ask(
        self, items: Sequence[ScoreItem], spec: RewardSpec, weights: Mapping[str, float] | None, whole: bool
    ) -> list[Reward]:
        """Send a request until the service answers it. Raises RewardServiceUnavailable, and InvalidRequest."""
        if spec.ensemble is None and weights is not None:
            spec, weights = RewardSpec(weights), None
        request = ScoreRequest(tuple(items), tuple(spec.scorers), spec.ensemble, weights)
        text_only = None if self._catalogue is None else self._catalogue.text_only
        try:
            response = self._until_available(lambda: self._client.score(request), retry_late=False)
        except InvalidRequest:
            raise
        except SynodError as error:
            return [Reward(None, failure=ScoreFailure.of(error))] * len(request.items)
        return [_reward(result, spec, text_only, whole) for result in response.results]

    def _until_available(self, call: Callable[[], T], *, growing: bool = True, retry_late: bool = True) -> T:
        """Return what `call` returns, and call it again while the service is unavailable.

        The pauses grow if `growing`. A call that exceeded its deadline is called again if `retry_late`. Raises
        RewardServiceUnavailable after `patience_s`, and what `call` raises otherwise.
        """
        began, attempt = time.monotonic(), 0
        while True:
            try:
                found = call()
            except Unavailable as error:
                if isinstance(error, DeadlineExceeded) and not retry_late:
                    raise
                self._wait(error, began, BACKOFF.backoff_s(attempt))
                attempt += growing
            else:
                self._log_recovery()
                return found

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
                f"[trainer.rewards] patience_s is {patience_s:g}. Start it (`make up`) and train again: the run "
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


def _reward(result: ItemResult, spec: RewardSpec, text_only: Collection[str] | None, whole: bool) -> Reward:
    components = {name: score.value for name, score in result.scores.items() if isinstance(score, Score)}
    if spec.scorers:
        return _weighted(result, spec, components, text_only)
    if isinstance(result.reward, Score):
        if whole and (missing := result.reward.detail.get("missing")):
            return Reward(None, components, ScoreFailure(SynodError.code, f"its terms lack {', '.join(missing)}"))
        fixed = _fixed(_contributions(result.reward), text_only)
        return Reward(result.reward.value, components, fixed=fixed, official=_official(result))
    return Reward(None, components, result.reward or ScoreFailure(SynodError.code, "the response holds no reward"))


def _weighted(
    result: ItemResult, spec: RewardSpec, components: Mapping[str, float], text_only: Collection[str] | None
) -> Reward:
    """Return the weighted sum of the scores; missing if one of them is, and retryable only if all missing ones are."""
    failures = [
        replace(outcome, message=f"{name}: {outcome.message}")
        for name in spec.weights
        if isinstance(outcome := result.scores.get(name), ScoreFailure)
    ]
    if failures:
        return Reward(None, components, min(failures, key=lambda failure: failure.retryable))
    terms = {name: weight * components[name] for name, weight in spec.weights.items()}
    value = total(terms.values())  # rounded once, as the sum of the fixed terms
    if math.isfinite(value):
        return Reward(value, components, fixed=_fixed(terms, text_only), official=_official(result))
    error = NonFinite(f"the weighted sum of {', '.join(spec.weights)} is {value}; give smaller weights")
    return Reward(None, components, ScoreFailure.of(error))


def _fixed(terms: Mapping[str, float] | None, text_only: Collection[str] | None) -> dict[str, float] | None:
    """Return the terms of scorers that read only text; None if terms or scorers are not known."""
    if terms is None or text_only is None:
        return None
    return {name: term for name, term in terms.items() if name in text_only}


def _official(result: ItemResult) -> float | None:
    """Return the verdict by GenEval's own rules in the detail of a score; None if no scorer gave one."""
    details = [score.detail for score in result.scores.values() if isinstance(score, Score)]
    found = [detail["official"] for detail in details if isinstance(detail.get("official"), int | float)]
    return float(found[0]) if found else None


def _contributions(reward: Score) -> dict[str, float] | None:
    """Return the term of each scorer in an ensemble's reward, from its detail; None if the detail has none."""
    try:
        return {str(k): float(one["contribution"]) for k, one in reward.detail["components"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
