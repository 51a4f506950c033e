"""Curves as SVG paths: records in, geometry out. Pure; the page's template draws what is made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WIDTH, HEIGHT = 400, 170  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22  # margins
DASH: Final = 3
WINDOW: Final = 10  # steps of the running mean

Record = Mapping[str, Any]
Getter = Callable[[Record], float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """`raw` and `smooth` are paths; `smooth` is the mean of the last WINDOW measured values, `last` where it ends."""

    label: str
    raw: str
    smooth: str
    last: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Ticks are (place, label) along their axis."""

    title: str
    series: tuple[Series, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


def at(path: str) -> Getter:
    """Reads `a.b` of a record; None where it is absent, null, or no number."""

    def get(record: Record) -> float | None:
        value: Any = record
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    return get


def chart(title: str, records: Sequence[Record], lines: Mapping[str, Getter]) -> Chart | None:
    """A chart over the steps; a line without a value is left out, and None comes back when no line has one."""
    steps = [record["step"] for record in records]
    read = {label: [get(record) for record in records] for label, get in lines.items()}
    read = {label: values for label, values in read.items() if any(v is not None for v in values)}
    if not read:
        return None
    measured = [value for values in read.values() for value in values if value is not None]
    up = ticks(min(measured), max(measured))
    across = [t for t in ticks(steps[0], max(steps[-1], steps[0] + 1)) if t == int(t) and t >= steps[0]]
    x = _scale(steps[0], max(steps[-1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    y = _scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    return Chart(
        title,
        tuple(_series(label, steps, values, x, y) for label, values in read.items()),
        tuple((round(x(tick), 1), f"{tick:g}") for tick in across if tick <= max(steps[-1], steps[0] + 1)),
        tuple((round(y(tick), 1), f"{tick:.4g}") for tick in up),
    )


def running_mean(values: Sequence[float | None], window: int = WINDOW) -> list[float | None]:
    """At each place the mean of the last `window` measured values up to it; None before the first."""
    held: list[float] = []
    means: list[float | None] = []
    for value in values:
        if value is not None:
            held = [*held, value][-window:]
        means.append(math.fsum(held) / len(held) if held else None)
    return means


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in even steps of 1, 2 or 5 times a power of ten, from at or below `low` to at or above `high`."""
    size = max(abs(low), abs(high))
    spread = high - low if high - low > 1e-9 * size else size  # all the same but for rounding
    spread = spread if spread > 1e-300 else 1.0
    step = 10.0 ** math.floor(math.log10(spread / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if spread / (step * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _series(
    label: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Series:
    means = running_mean(values)
    last = means[-1]
    assert last is not None, "a line without a value was left out"
    return Series(label, _path(steps, values, x, y), _path(steps, means, x, y), last)


def _path(
    steps: Sequence[int], values: Sequence[float | None], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """A broken line: it stops where a value is missing. A value that stands alone becomes a dash."""
    parts = []
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if value is None:
            continue
        follows = i > 0 and values[i - 1] is not None
        alone = not follows and (i + 1 == len(values) or values[i + 1] is None)
        start = x(step) - (DASH / 2 if alone else 0)
        parts.append(f"{'L' if follows else 'M'}{start:.1f} {y(value):.1f}" + (f"h{DASH}" if alone else ""))
    return "".join(parts)
