"""PURE: what a request asks for. Limits first, then which scorers each item needs and how its reward is made."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from services.combine import Missing, Weights, combine, required, weights_for
from services.settings import (
    MAX_REFERENCES,
    MAX_SEGMENTS,
    MAX_TEXT_CHARS,
    MAX_TIMEOUT_MS,
    EnsembleSettings,
    LimitSettings,
)
from synod.contracts import Outcome, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PayloadTooLarge, UnknownScorer


@dataclass(frozen=True, slots=True)
class Plan:
    """`scorers_of[i]`: the scorers item i needs. `weights[i]`: its reward's weights, or why none, or None unasked."""

    scorers: tuple[str, ...]
    scorers_of: tuple[tuple[str, ...], ...]
    weights: tuple[Weights | ScoreFailure | None, ...]
    missing: Missing
    clip_at_zero: bool

    def reward(self, i: int, scores: Mapping[str, Outcome]) -> Outcome | None:
        """Item i's reward from its outcomes; None when no reward was asked for."""
        weights = self.weights[i]
        if weights is None or isinstance(weights, ScoreFailure):
            return weights
        return combine(scores, weights, self.missing, clip_at_zero=self.clip_at_zero)


def plan_request(
    request: ScoreRequest,
    known: Collection[str],
    ensembles: Mapping[str, EnsembleSettings],
    limits: LimitSettings,
) -> Plan:
    """The plan of a request within the limits. An item needs the scorers named plus those its reward weighs above 0.

    Raises InvalidRequest for a request that asks for nothing or holds a bad weight or timeout, UnknownScorer,
    PayloadTooLarge.
    """
    _check_limits(request, limits)
    _check_names(request, known, ensembles)
    _check_numbers(request)
    ensemble = None if request.ensemble is None else ensembles[request.ensemble]
    weights = tuple(_weights(request, ensemble, item) for item in request.items)
    scorers_of = tuple(
        tuple(dict.fromkeys((*request.scorers, *(required(w) if isinstance(w, Mapping) else ())))) for w in weights
    )
    scorers = tuple(dict.fromkeys(name for names in scorers_of for name in names))
    missing, clip_at_zero = (ensemble.missing, ensemble.clip_at_zero) if ensemble else ("fail", False)
    return Plan(scorers, scorers_of, weights, missing, clip_at_zero)


def _weights(
    request: ScoreRequest, ensemble: EnsembleSettings | None, item: ScoreItem
) -> Weights | ScoreFailure | None:
    if request.weights is not None:
        return request.weights
    if ensemble is None or request.ensemble is None:
        return None
    return weights_for(request.ensemble, ensemble.weights, ensemble.by_kind, item.concept)


def _check_names(request: ScoreRequest, known: Collection[str], ensembles: Mapping[str, EnsembleSettings]) -> None:
    if not request.scorers and request.ensemble is None and request.weights is None:
        raise InvalidRequest(f"nothing to compute: give 'scorers' (of {_names(known)}), 'ensemble' or 'weights'")
    for name in (*request.scorers, *(request.weights or ())):
        if name not in known:
            raise UnknownScorer(f"no scorer '{name}' here; this service serves {_names(known)}")
    if request.ensemble is not None and request.ensemble not in ensembles:
        raise UnknownScorer(f"no ensemble '{request.ensemble}' here; this service has {_names(ensembles) or 'none'}")


def _check_numbers(request: ScoreRequest) -> None:
    if request.timeout_ms is not None and not 0 < request.timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"'timeout_ms' is {request.timeout_ms}; give milliseconds in 1..{MAX_TIMEOUT_MS}")
    for name, weight in (request.weights or {}).items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidRequest(f"weights.{name} is {weight}; a weight is a finite number >= 0")
    if request.weights is not None and not required(request.weights):
        raise InvalidRequest("'weights' has no weight above 0; weigh at least one scorer, or leave it out")


def _check_limits(request: ScoreRequest, limits: LimitSettings) -> None:
    if not request.items:
        raise InvalidRequest("'items' is empty; send at least one item")
    _bound("items", len(request.items), limits.max_items, " ([limits] max_items)")
    for i, item in enumerate(request.items):
        _bound(f"items[{i}].references", len(item.references), MAX_REFERENCES)
        for name, text in (("prompt", item.prompt), ("source_prompt", item.source_prompt)):
            _bound(f"items[{i}].{name}", len(text or ""), MAX_TEXT_CHARS)
        if item.reasoning is not None:
            segments = item.reasoning.segments
            _bound(f"items[{i}].reasoning.text", len(item.reasoning.text), MAX_TEXT_CHARS)
            _bound(f"items[{i}].reasoning.segments", len(segments), MAX_SEGMENTS)
            longest = max((len(segment) for segment in segments), default=0)
            _bound(f"items[{i}].reasoning.segments[..]", longest, MAX_TEXT_CHARS)
        if item.geneval is not None:
            clauses = (*item.geneval.include, *item.geneval.exclude)
            _bound(f"items[{i}].geneval", len(clauses), MAX_SEGMENTS)
            questions = item.geneval.vqa_list
            _bound(f"items[{i}].geneval.vqa_list", len(questions), MAX_SEGMENTS)
            longest = max((len(text) for question in questions for text in question), default=0)
            _bound(f"items[{i}].geneval.vqa_list[..]", longest, MAX_TEXT_CHARS)


def _bound(path: str, size: int, limit: int, setting: str = "") -> None:
    if size > limit:
        raise PayloadTooLarge(f"{path} has {size}, the limit is {limit}{setting}; send less, or several requests")


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
