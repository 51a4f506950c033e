"""A service's address, and one client for each event loop that asks: trainers bring their own loops."""

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
    """Asks one service. `options` are AsyncSynodClient's: timeout_s, retries, token, by_digest (True unless given).

    Raises ValueError for a `url` that cannot be one.
    """

    def __init__(self, url: str, **options: Any) -> None:
        scheme_of(url)
        self._url, self._options = url, {"by_digest": True, **options}
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSynodClient] = WeakKeyDictionary()

    async def values(self, request: ScoreRequest, on_error: OnError) -> Values:
        """The answer as numbers. "mask" makes a single score that failed None; "raise" raises one error that names all
        of them. A call that fails as a whole (the service is away, after all retries) raises its SynodError either way.
        """
        return values_of(await self._client().score(request), on_error)

    async def close(self) -> None:
        """Close the running loop's connections; a later call opens them again."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _client(self) -> AsyncSynodClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = AsyncSynodClient(self._url, **self._options)
        return self._clients[loop]


def asked(scorer: str | None, ensemble: str | None) -> ScoreRequest:
    """What one number per item is asked for by: a scorer's values or an ensemble's rewards. Raises ValueError unless
    exactly one is given."""
    if (scorer is None) == (ensemble is None):
        raise ValueError(f"scorer is {scorer!r} and ensemble {ensemble!r}; give one of them")
    return ScoreRequest((), () if scorer is None else (scorer,), ensemble)


def numbers(values: Values, request: ScoreRequest) -> tuple[float | None, ...]:
    """One number per item, None where there is none: the rewards, or the values of the one scorer asked for."""
    return values.rewards if request.ensemble is not None else values.scores[request.scorers[0]]


def check_not_all_failed(values: Values) -> None:
    """Raise where every item's score by one scorer, or every reward, failed and none retryably: a trainer that goes on
    would train on nothing. The error is the first failure's kind and names the scorer, the codes and their counts."""
    items = len(values.response.results)
    for name in dict.fromkeys(one.what for one in values.missing):
        failed = [one for one in values.missing if one.what == name]
        if len(failed) < items or any(one.failure.retryable for one in failed):
            continue
        codes = ", ".join(f"{code}: {count}" for code, count in Counter(one.failure.code for one in failed).items())
        error = failed[0].error()
        raise type(error)(
            f"all {items} scores of '{name}' failed, and asking again would not help ({codes}); {error.message}; "
            "correct what the scorer reads, or go on without these scores by on_all_failed='mask'"
        )
