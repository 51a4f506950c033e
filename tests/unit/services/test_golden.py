"""Golden items: drift and failures are reported, records round-trip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services import golden
from services.scorers.base import ScorerSpec
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import NonFinite, SettingsError, Unavailable

ENTRIES = [
    {"item": {"prompt": "0.5"}, "scores": {"number": 0.5, "other": 9.0}},
    {"item": {"prompt": "0.25"}, "scores": {}},
    {"item": {}, "scores": {}},
]


class Number:
    def __init__(self, offset: float = 0.0) -> None:
        self.spec = ScorerSpec("number", ("prompt",), 0.0, 1.0, "a test", "a test")
        self.offset = offset

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(float(item.prompt or "") + self.offset) for item in items]


def write(folder: Path, entries: Any) -> Path:
    path = folder / "golden.json"
    path.write_text(json.dumps(entries))
    return path


def test_no_drift_within_tolerance_or_without_record(tmp_path: Path) -> None:
    items = golden.load(write(tmp_path, ENTRIES))
    assert golden.find_drift(Number(), items, 1e-3) is None
    assert golden.find_drift(Number(9e-4), items, 1e-3) is None


def test_drift_names_item_value_record_and_tolerance(tmp_path: Path) -> None:
    items = golden.load(write(tmp_path, ENTRIES))
    assert golden.find_drift(Number(0.01), items, 1e-3) == "golden item 0 scored 0.51; recorded is 0.5 +- 0.001"


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_failure_of_a_recorded_item_is_drift(tmp_path: Path, offset: float) -> None:
    items = golden.load(write(tmp_path, ENTRIES))
    assert "golden item 0 failed (non_finite" in str(golden.find_drift(Number(offset), items, 1e9))


def test_temporary_failure_is_drift_unless_ignored(tmp_path: Path) -> None:
    items = golden.load(write(tmp_path, ENTRIES))
    unavailable = ScoreFailure.of(Unavailable("the judge failed"))
    assert "unavailable" in str(golden.compare_outcomes("number", items, [unavailable] * 3, 1e-3))
    assert golden.compare_outcomes("number", items, [unavailable] * 3, 1e-3, ignore_temporary=True) is None
    assert golden.is_temporary(unavailable)
    assert not golden.is_temporary(ScoreFailure.of(NonFinite("nan")))


def test_record_omits_failures(tmp_path: Path) -> None:
    path = write(tmp_path, ENTRIES)
    text = golden.record(golden.read_entries(path), golden.load(path), [Number(0.25)])
    assert [entry["scores"] for entry in json.loads(text)] == [{"number": 0.75}, {"number": 0.5}, {}]
    assert [entry["item"] for entry in json.loads(text)] == [entry["item"] for entry in ENTRIES]
    path.write_text(text)
    assert golden.find_drift(Number(0.25), golden.load(path), 1e-9) is None


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "[1]", '[{"scores": {}}]', '[{"item": {"surprise": 1}}]', '[{"item": {"image": "%"}}]',
     '[{"item": {"prompt": "x"}, "scores": {"a": "high"}}]', '[{"item": {"prompt": "x"}, "scores": [1]}]'],
)  # fmt: skip
def test_invalid_golden_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"golden\.json"):
        golden.load(path)
