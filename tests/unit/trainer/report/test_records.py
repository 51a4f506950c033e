"""The figures of a step that no other test measures."""

from __future__ import annotations

import pytest

from trainer import clock
from trainer.distributed import Ranks
from trainer.report.records import ranks_record


def test_the_rank_that_waits_least_is_the_slowest() -> None:
    """Three ranks of 10 s; rank 1 works for 9.5 s while the others wait 4 s and 1.5 s."""
    waits, previews = (4.0, 0.5, 1.5), (6.0, 9.5, 8.5)
    laps = [
        ({"preview": preview, "total": 10.0}, {"wait": wait, "total": 10.0})
        for preview, wait in zip(previews, waits, strict=True)
    ]
    assert ranks_record(laps) == {"wait_share": 0.2, "slowest": 1, "seconds": {"preview": 9.5, "total": 10.0}}
    assert ranks_record(laps[:1]) is None
    assert ranks_record([({}, {"total": 2.0}), ({}, {"total": 2.0})]) == {"wait_share": 0, "slowest": 0, "seconds": {}}


def test_work_before_the_exchange_is_not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def exchange(_: Ranks, document: object) -> list[object]:
        now[0] += 2.0
        return [document]

    monkeypatch.setattr(Ranks, "gather_all", exchange)
    ranks = Ranks()
    with ranks.together():
        now[0] += 5.0
    with pytest.raises(ZeroDivisionError), ranks.together():
        raise ZeroDivisionError
    assert ranks.waiting.lap() == {"wait": 4.0, "total": 9.0}
    assert ranks.waiting.lap() == {"total": 0.0}
