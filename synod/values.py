"""Responses as numbers: one value per item, or None and the reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreRequest, ScoreResponse
from synod.errors import SynodError, error_of

OnError = Literal["raise", "mask"]
MAX_LISTED: Final = 8  # items that one error message lists


def total(terms: Collection[float]) -> float:
    """Return the sum, rounded once whatever the order of the terms; not finite if huge ones overflow."""
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):
        return sum(terms)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why item `index` has no value from `scorer`, or no reward where `scorer` is None."""

    index: int
    scorer: str | None
    failure: ScoreFailure

    @property
    def what(self) -> str:
        """Return the scorer's name, or "reward"."""
        return "reward" if self.scorer is None else self.scorer

    def error(self) -> SynodError:
        """Return the failure as an exception that names the item."""
        failure = self.failure
        message = f"items[{self.index}].{self.what}: {failure.message}"
        return error_of(failure.code, message, retryable=failure.retryable)


@dataclass(frozen=True, slots=True)
class Values:
    """A response as numbers: `scores[name]` and `rewards` hold a finite value per item, in order, or None.

    A None without an entry in `missing` was not requested. `response` has the details.
    """

    scores: Mapping[str, tuple[float | None, ...]]
    rewards: tuple[float | None, ...]
    missing: tuple[Missing, ...]
    response: ScoreResponse


def values_of(response: ScoreResponse, on_error: OnError) -> Values:
    """Return a response's numbers.

    With "raise", raises the error of the first missing one, which lists the others.
    """
    names = dict.fromkeys(name for result in response.results for name in result.scores)
    missing = tuple(
        Missing(index, scorer, outcome)
        for index, result in enumerate(response.results)
        for scorer, outcome in (*result.scores.items(), (None, result.reward))
        if isinstance(outcome, ScoreFailure)
    )
    if missing and on_error == "raise":
        raise error_of_missing(missing)
    scores = {name: tuple(_value(result.scores.get(name)) for result in response.results) for name in names}
    return Values(scores, tuple(_value(result.reward) for result in response.results), missing, response)


def error_of_missing(missing: Sequence[Missing]) -> SynodError:
    """Return the first failure as an exception that lists all items without a value, MAX_LISTED at most."""
    error = missing[0].error()
    if len(missing) == 1:
        return error
    others = ", ".join(f"items[{one.index}].{one.what}" for one in missing[1:MAX_LISTED])
    more = "" if len(missing) <= MAX_LISTED else f" and {len(missing) - MAX_LISTED} more"
    return type(error)(f"{error.message}; also missing: {others}{more}")


def failed_response(request: ScoreRequest, error: SynodError) -> ScoreResponse:
    """Return the response to `request` in which every requested score and reward failed with `error`."""
    failure = ScoreFailure.of(error)
    rewarded = request.ensemble is not None or request.weights is not None
    result = ItemResult(dict.fromkeys(request.scorers, failure), failure if rewarded else None)
    return ScoreResponse((result,) * len(request.items), request.request_id or "")


def _value(outcome: Outcome | None) -> float | None:
    return outcome.value if isinstance(outcome, Score) else None
