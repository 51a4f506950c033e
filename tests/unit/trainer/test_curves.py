"""Geometry of the curves by hand, ticks by their laws, running means against a naive loop."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import curves
from trainer.curves import at, chart, running_mean, ticks

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))


def points(path: str) -> list[tuple[str, float, float]]:
    return [(c, float(x), float(y)) for c, x, y in re.findall(r"([ML])(-?[\d.]+) (-?[\d.]+)", path)]


@given(values=st.lists(st.none() | st.floats(-5, 5), max_size=20), window=st.integers(1, 5))
def test_running_mean_agrees_with_a_naive_loop(values: list[float | None], window: int) -> None:
    for i, found in enumerate(running_mean(values, window)):
        measured = [v for v in values[: i + 1] if v is not None][-window:]
        assert found == (pytest.approx(np.mean(measured), abs=1e-12) if measured else None)


@given(low=numbers, spread=st.just(0.0) | st.floats(1e-3, 1e6))
def test_ticks_hold_the_range_in_few_round_even_steps(low: float, spread: float) -> None:
    high, found = low + spread, ticks(low, low + spread)
    steps = np.diff(found)
    size = max(abs(low), abs(high), spread)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + 1e-6 * size
    assert found[-1] >= high - 1e-6 * size
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3, atol=2e-12)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.31, 0.58, [0.3, 0.4, 0.5, 0.6]), (0, 0, [0, 0.2]), (3, 3, [3, 4])],
)
def test_ticks_by_hand(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_a_chart_by_hand() -> None:
    values = [0.0, 1.0, None, 0.5, None, 1.0]
    made = chart("t", [{"step": 10 + i, "v": v} for i, v in enumerate(values)], {"v": at("v"), "none": at("w")})
    assert made is not None
    (series,) = made.series
    assert series.label == "v"
    assert series.last == pytest.approx(2.5 / 4)
    x = [curves.LEFT + (curves.WIDTH - curves.RIGHT - curves.LEFT) * i / 5 for i in range(6)]
    low, high = curves.HEIGHT - curves.BOTTOM, curves.TOP
    half = curves.DASH / 2
    drawn = [("M", x[0], low), ("L", x[1], high), ("M", x[3] - half, (low + high) / 2), ("M", x[5] - half, high)]
    assert points(series.raw) == [(c, pytest.approx(a, abs=0.06), pytest.approx(b, abs=0.06)) for c, a, b in drawn]
    assert series.raw.count(f"h{curves.DASH}") == 2, "values that stand alone are dashes"
    assert [p[0] for p in points(series.smooth)] == ["M", *"LLLLL"], "the mean goes on through gaps"
    assert made.up[0] == (low, "0")
    assert made.up[-1] == (high, "1")
    assert [label for _, label in made.across] == ["10", "11", "12", "13", "14", "15"]
    assert [place for place, _ in made.across] == pytest.approx(x, abs=0.06)


@given(values=st.lists(st.none() | st.floats(-1e9, 1e9), min_size=1, max_size=30), first=st.integers(0, 10**6))
def test_every_point_lies_inside(values: list[float | None], first: int) -> None:
    made = chart("t", [{"step": first + i, "v": v} for i, v in enumerate(values)], {"v": at("v")})
    assert (made is None) == all(v is None for v in values)
    if made is not None:
        drawn = points(made.series[0].raw + made.series[0].smooth)
        assert all(curves.LEFT - 2 <= x <= curves.WIDTH - curves.RIGHT + 0.1 for _, x, _ in drawn)
        assert all(curves.TOP - 0.1 <= y <= curves.HEIGHT - curves.BOTTOM + 0.1 for _, _, y in drawn)
        assert len(points(made.series[0].raw)) == sum(v is not None for v in values)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"a": {"b": 2}}, 2.0),
        ({"a": {"b": None}}, None),
        ({"a": 1}, None),
        ({}, None),
        ({"a": {"b": "x"}}, None),
        ({"a": {"b": float("nan")}}, None),
    ],
)
def test_at_reads_numbers_only(record: dict[str, Any], expected: float | None) -> None:
    assert at("a.b")(record) == expected


def test_no_records_no_chart() -> None:
    assert chart("t", [], {"v": at("v")}) is None
