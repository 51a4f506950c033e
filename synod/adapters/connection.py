"""A service's URL with one client per event loop: trainers run their own loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal
from weakref import WeakKeyDictionary

from synod.client import AsyncSynodClient
from synod.client.transport import scheme_of
from synod.contracts import ScoreRequest
from synod.values import OnError, Values, values_of

OnAllFailed = Literal["raise", "mask"]


class Connection:
    """Call one service from any event loop.

    `options` are AsyncSynodClient's: timeout_s, retries, token, by_digest (here True by default). Raises ValueError for
    a `url` that is not a Synod URL.
    """

    def __init__(self, url: str, **options: Any) -> None:
        scheme_of(url)
        self._url, self._options = url, {"by_digest": True, **options}
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSynodClient] = WeakKeyDictionary()

    async def values(self, request: ScoreRequest, on_error: OnError) -> Values:
        """Score items and return numbers.

        "mask" makes a score that failed None; "raise" raises one error that lists all of them. A call that fails as a
        whole, after all retries, always raises its SynodError.
        """
        return values_of(await self._client().score(request), on_error)

    async def close(self) -> None:
        """Close the running loop's connections; a later call reopens them."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _client(self) -> AsyncSynodClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = AsyncSynodClient(self._url, **self._options)
        return self._clients[loop]


def request_for(scorer: str | None, ensemble: str | None) -> ScoreRequest:
    """Return a request without items for one scorer's values or one ensemble's rewards.

    Raises ValueError unless exactly one of them is given.
    """
    if (scorer is None) == (ensemble is None):
        raise ValueError(f"scorer is {scorer!r} and ensemble is {ensemble!r}; give exactly one of them")
    return ScoreRequest((), () if scorer is None else (scorer,), ensemble)


def values_per_item(values: Values, request: ScoreRequest) -> tuple[float | None, ...]:
    """Return one number or None per item: the rewards, or the values of the requested scorer."""
    return values.rewards if request.ensemble is not None else values.scores[request.scorers[0]]


def check_not_all_failed(values: Values) -> None:
    """Raise if all scores of a scorer, or all rewards, failed and none is retryable.

    Training would have no signal. The error has the first failure's type and names the scorer and the codes with their
    counts.
    """
    items = len(values.response.results)
    for name in dict.fromkeys(one.what for one in values.missing):
        failed = [one for one in values.missing if one.what == name]
        if len(failed) < items or any(one.failure.retryable for one in failed):
            continue
        codes = ", ".join(f"{code}: {count}" for code, count in Counter(one.failure.code for one in failed).items())
        error = failed[0].error()
        raise type(error)(
            f"all {items} scores of '{name}' failed, and a retry would not help ({codes}); {error.message}; "
            "correct the scorer's inputs, or train without these scores with on_all_failed='mask'"
        )
