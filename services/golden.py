"""Golden items: inputs with recorded scores that a scorer must reproduce before it may serve.

The file is a JSON list of {"item": <item as on the wire>, "scores": {scorer name: value}}. A scorer runs over every
item. Where a value is recorded for it, its score must be within the settings' `golden_tolerance`; elsewhere any score
or typed failure passes. `python -m services golden` records the values again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.scorers.base import Scorer, score_batch
from synod.codec import CODECS
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError, SynodError
from synod.images import ImageLimits, decode_item

_LIMITS = ImageLimits(max_bytes=16 * 2**20, max_pixels=4096 * 4096)


@dataclass(frozen=True, slots=True)
class GoldenItem:
    """A decoded item and the values recorded for it, by scorer name."""

    item: ScoreItem
    scores: Mapping[str, float]


def load(path: Path) -> tuple[GoldenItem, ...]:
    """Read the golden items of a file and decode their images. Raises SettingsError for an invalid file."""
    entries = read_entries(path)
    try:
        request = {"items": [entry["item"] for entry in entries], "scorers": ["golden"]}
        items = CODECS["application/json"].decode_request(json.dumps(request).encode()).items
        return tuple(
            GoldenItem(decode_item(item, _LIMITS), {name: float(v) for name, v in entry.get("scores", {}).items()})
            for item, entry in zip(items, entries, strict=True)
        )
    except (SynodError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"the golden file {path} is invalid ({error!r}); record it again: python -m services golden"
        ) from error


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a file's entries, undecoded. Raises SettingsError unless each is an object with an 'item'."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the golden file {path} cannot be read: {error}") from error
    if not (isinstance(entries, list) and entries and all(isinstance(e, dict) and "item" in e for e in entries)):
        raise SettingsError(f"the golden file {path} is not a list of objects with an 'item' each; correct it")
    return entries


def find_drift(scorer: Scorer, golden: Sequence[GoldenItem], tolerance: float) -> str | None:
    """Score the golden items; describe the first that differs from its record, or return None."""
    return compare_outcomes(scorer.spec.name, golden, score_batch(scorer, [one.item for one in golden]), tolerance)


def compare_outcomes(
    name: str,
    golden: Sequence[GoldenItem],
    outcomes: Sequence[Outcome],
    tolerance: float,
    *,
    ignore_temporary: bool = False,
) -> str | None:
    """Describe the first golden item whose outcome by `name` differs from its record, or return None.

    A failure differs. With `ignore_temporary` one that a retry may cure does not: it says nothing about the scorer.
    """
    for i, (one, outcome) in enumerate(zip(golden, outcomes, strict=True)):
        recorded = one.scores.get(name)
        if recorded is None or (ignore_temporary and is_temporary(outcome)):
            continue
        if isinstance(outcome, ScoreFailure):
            return f"golden item {i} failed ({outcome.code}: {outcome.message}); recorded is {recorded:.6g}"
        if abs(outcome.value - recorded) > tolerance:
            return f"golden item {i} scored {outcome.value:.6g}; recorded is {recorded:.6g} +- {tolerance:g}"
    return None


def is_temporary(outcome: Outcome) -> bool:
    """Return whether the outcome is a failure that a retry may cure, such as that of a judge that does not answer."""
    return isinstance(outcome, ScoreFailure) and outcome.retryable


def record(entries: Sequence[Mapping[str, Any]], golden: Sequence[GoldenItem], scorers: Sequence[Scorer]) -> str:
    """Return the file's new text: the same items with the scorers' present values, without failures."""
    outcomes_by_scorer = {scorer.spec.name: score_batch(scorer, [one.item for one in golden]) for scorer in scorers}
    updated = []
    for i, entry in enumerate(entries):
        now = {name: o.value for name, outcomes in outcomes_by_scorer.items() if isinstance(o := outcomes[i], Score)}
        updated.append({"item": entry["item"], "scores": now})
    return json.dumps(updated, indent=1) + "\n"
