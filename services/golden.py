"""Golden items: what each scorer must answer before it may serve.

The file is JSON, a list of {"item": <item as on the wire>, "scores": {scorer name: value}}. A scorer runs over every
item; where a value is recorded for it, it must come within the settings' `golden_tolerance`, elsewhere any score or
typed failure will do. `python -m services golden` records the values anew.
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
class Golden:
    """A decoded item and the values recorded for it, by scorer name."""

    item: ScoreItem
    scores: Mapping[str, float]


def load(path: Path) -> tuple[Golden, ...]:
    """The golden items of a file, images decoded. Raises SettingsError for a file that cannot be used."""
    entries = entries_of(path)
    try:
        request = {"items": [entry["item"] for entry in entries], "scorers": ["golden"]}
        items = CODECS["application/json"].decode_request(json.dumps(request).encode()).items
        return tuple(
            Golden(decode_item(item, _LIMITS), {name: float(v) for name, v in entry.get("scores", {}).items()})
            for item, entry in zip(items, entries, strict=True)
        )
    except (SynodError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"golden file {path}: {error!r}. Record it anew: python -m services golden") from error


def entries_of(path: Path) -> list[dict[str, Any]]:
    """The file as it stands. Raises SettingsError when it is not a JSON list of objects with an 'item'."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"golden file {path}: {error}") from error
    if not (isinstance(entries, list) and entries and all(isinstance(e, dict) and "item" in e for e in entries)):
        raise SettingsError(f"golden file {path}: not a list of objects with an 'item' each")
    return entries


def drift(scorer: Scorer, golden: Sequence[Golden], tolerance: float) -> str | None:
    """Why `scorer` must not serve, or None: the first golden item that it scores otherwise than recorded."""
    return judge(scorer.spec.name, golden, score_batch(scorer, [one.item for one in golden]), tolerance)


def judge(name: str, golden: Sequence[Golden], outcomes: Sequence[Outcome], tolerance: float) -> str | None:
    """The same of what scorer `name` made of the golden items, in their order."""
    for i, (one, outcome) in enumerate(zip(golden, outcomes, strict=True)):
        recorded = one.scores.get(name)
        if recorded is None:
            continue
        if isinstance(outcome, ScoreFailure):
            return f"golden item {i} failed ({outcome.code}: {outcome.message}); recorded is {recorded:.6g}"
        if abs(outcome.value - recorded) > tolerance:
            return f"golden item {i} scored {outcome.value:.6g}; recorded is {recorded:.6g} +- {tolerance:g}"
    return None


def record(entries: Sequence[Mapping[str, Any]], golden: Sequence[Golden], scorers: Sequence[Scorer]) -> str:
    """The file's new text: the same items with what `scorers` give now. A failure is left out, never a number."""
    answers = {scorer.spec.name: score_batch(scorer, [one.item for one in golden]) for scorer in scorers}
    renewed = []
    for i, entry in enumerate(entries):
        now = {name: o.value for name, outcomes in answers.items() if isinstance(o := outcomes[i], Score)}
        renewed.append({"item": entry["item"], "scores": now})
    return json.dumps(renewed, indent=1) + "\n"
