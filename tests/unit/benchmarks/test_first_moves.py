"""The simulation of first moves: its worlds, its estimates, and that ways to decide differ."""

from __future__ import annotations

import math

import pytest

from benchmarks import first_moves
from benchmarks.first_moves import MEASURED, STEPS, UPDATES, WORLDS, World, added, compared, shrunk, true_signal
from trainer.algorithms.audit import Correlation
from trainer.algorithms.auto import Foresight


def known(rho: float, error: float, groups: int = 4) -> Foresight:
    """A signal of 1 + rho^2 - error^2: groups of xx = yy = 1, whose xy differ so that rho has this error."""
    squares = groups * rho**2 + error**2 * groups * (groups - 1)
    sums = (squares, groups * rho, groups * rho, *[float(groups)] * 3)
    return Foresight(Correlation(groups, groups * rho, groups, groups, sums), float(groups), float(groups))


def test_true_signals_and_the_best_screens() -> None:
    """A correlation of .9 gives 1 + .81 of what a perfect one adds; nine extremes of eighteen have 1.94."""
    last = true_signal(0.0, None, last=True)
    assert last == pytest.approx(1.94, abs=0.05)
    assert true_signal(0.9, None, last=False) - 1 == pytest.approx(
        0.81 * (true_signal(1.0, None, last=False) - 1), abs=0.05
    )
    world = WORLDS["as measured"]
    assert [world.best(pathway) for pathway in ("visual", "textual", "none")] == [STEPS, 0, STEPS]
    assert [WORLDS["nothing pays"].best(pathway) for pathway in ("visual", "textual", "none")] == [None] * 3


def test_pooled_and_shrunk_signals_by_hand() -> None:
    """Signals of 1.48 and 1.08 differ by more than their errors: each stays nearly its own. Equal ones are pooled."""
    good, poor = known(0.7, 0.1), known(0.3, 0.1)
    assert (good.correlation.error, good.signal.value) == (pytest.approx(0.1), pytest.approx(1.48))
    assert added([good, good]).signal.value == pytest.approx(1 + 0.49 - 0.1**2 * 3 / 7)  # an error of eight groups
    assert added([good, poor]).correlation.value == pytest.approx(0.5)
    values, errors = zip(good.signal, poor.signal, strict=True)
    weight = [1 / error**2 for error in errors]
    mean = sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)
    excess = sum(w * (v - mean) ** 2 for w, v in zip(weight, values, strict=True)) - 1
    between = excess / (sum(weight) - sum(w**2 for w in weight) / sum(weight))
    center = [1 / (error**2 + between) for error in errors]
    mean = sum(w * v for w, v in zip(center, values, strict=True)) / sum(center)
    share = between / (between + errors[0] ** 2)
    found = shrunk(good, [good, poor])
    assert found.value == pytest.approx(mean + share * (values[0] - mean))
    assert 1.35 < found.value < values[0]
    assert shrunk(good, [good, good]).value == pytest.approx(values[0])
    assert shrunk(good, [good, good]).error == pytest.approx(errors[0] / math.sqrt(2))
    assert shrunk(good, [good]) == good.signal


def test_first_groups_that_measure_move_screens_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_moves, "GROUPS", (60,))
    monkeypatch.setattr(first_moves, "WAYS", ("own", "warm_up"))
    own, warm_up = compared(World(MEASURED, UPDATES), 2)
    assert float(warm_up[1]) > float(own[1]) + 0.02
    assert int(warm_up[2]) < 15 < int(own[2])
    assert float(own[1]) < 1
