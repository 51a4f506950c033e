"""Validate a request against the limits and the names that are served."""

from __future__ import annotations

import math
from collections.abc import Collection

from services.combine import required
from services.settings import (
    MAX_REFERENCES,
    MAX_REQUEST_ID_CHARS,
    MAX_SEGMENTS,
    MAX_TEXT_CHARS,
    MAX_TIMEOUT_MS,
    LimitSettings,
)
from synod.contracts import ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PayloadTooLarge, UnknownScorer
from synod.records import texts


def validate(
    request: ScoreRequest, scorers: Collection[str], ensembles: Collection[str], limits: LimitSettings
) -> None:
    """Raise PayloadTooLarge, UnknownScorer, or InvalidRequest for a request without items, scorers or valid numbers."""
    if not request.items:
        raise InvalidRequest("'items' is empty; send at least one item")
    _check_size(
        "the request", len(request.items), "items", limits.max_items, " ([limits] max_items). Send several requests"
    )
    _check_size("request_id", len(request.request_id or ""), "characters", MAX_REQUEST_ID_CHARS, ". Shorten it")
    for i, item in enumerate(request.items):
        _check_item(f"items[{i}]", item)
    _check_names(request, scorers, ensembles)
    _check_numbers(request)


def _check_item(path: str, item: ScoreItem) -> None:
    _check_size(f"{path}.references", len(item.references), "images", MAX_REFERENCES)
    if item.reasoning is not None:
        _check_size(f"{path}.reasoning.segments", len(item.reasoning.segments), "segments", MAX_SEGMENTS)
    if item.geneval is not None:
        clauses = len(item.geneval.include) + len(item.geneval.exclude)
        _check_size(f"{path}.geneval", clauses, "clauses in include and exclude", MAX_SEGMENTS)
        _check_size(f"{path}.geneval.vqa_list", len(item.geneval.vqa_list), "questions", MAX_SEGMENTS)
    if item.concept is not None and item.concept.about is not None:
        _check_size(f"{path}.concept.about.facts", len(item.concept.about.facts), "facts", MAX_SEGMENTS)
    for text_path, text in texts(item, path):
        _check_size(text_path, len(text), "characters", MAX_TEXT_CHARS, ". Shorten it")


def _check_names(request: ScoreRequest, scorers: Collection[str], ensembles: Collection[str]) -> None:
    if not request.scorers and request.ensemble is None and request.weights is None:
        raise InvalidRequest(
            f"the request names no scorer; give 'scorers' (of {_names(scorers)}), 'ensemble' or 'weights'"
        )
    for name in (*request.scorers, *(request.weights or ())):
        if name not in scorers:
            raise UnknownScorer(f"unknown scorer '{name}'; this service has {_names(scorers)}")
    if len(request.scorers) > len(scorers):
        raise InvalidRequest(
            f"'scorers' has {len(request.scorers)} names, but the service has {len(scorers)} scorers; name each once"
        )
    if request.ensemble is not None and request.ensemble not in ensembles:
        raise UnknownScorer(f"unknown ensemble '{request.ensemble}'; this service has {_names(ensembles) or 'none'}")


def _check_numbers(request: ScoreRequest) -> None:
    if request.timeout_ms is not None and not 0 < request.timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"'timeout_ms' is {request.timeout_ms}; give milliseconds in 1..{MAX_TIMEOUT_MS}")
    for name, weight in (request.weights or {}).items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidRequest(f"weights.{name} is {weight}; give a finite number >= 0")
    if request.weights is not None and not required(request.weights):
        raise InvalidRequest("'weights' has no weight above 0; weigh at least one scorer, or omit 'weights'")


def _check_size(path: str, size: int, unit: str, limit: int, remedy: str = ". Send fewer") -> None:
    if size > limit:
        raise PayloadTooLarge(f"{path} has {size:,} {unit}; the limit is {limit:,}{remedy}")


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
