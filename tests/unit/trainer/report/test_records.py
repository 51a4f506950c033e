"""The figures of a step that no other test measures."""

from __future__ import annotations

import pytest

from trainer import clock
from trainer.distributed import ONE_RANK, Ranks
from trainer.report.records import ranks_record


def test_the_rank_that_waits_least_is_the_slowest() -> None:
    """Three ranks of 10 s; rank 1 works for 9.5 s while the others wait 4 s and 1.5 s. Records are not waited for."""
    waits, previews = (4.0, 0.5, 1.5), (5.0, 9.5, 7.5)
    laps = [
        {"preview": preview, "ranks": wait, "records": 1.0, "total": 10.0}
        for preview, wait in zip(previews, waits, strict=True)
    ]
    assert ranks_record(laps) == {"world": 3, "wait_share": 0.2, "slowest": 1, "seconds": laps[1]}
    assert ranks_record(laps[:1]) is None
    idle = {"total": 2.0}
    assert ranks_record([idle, idle]) == {"world": 2, "wait_share": 0, "slowest": 0, "seconds": idle}


def test_work_before_the_exchange_is_not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of 5 s, of which 2 s are waiting, and 3 s in which rank 0 writes."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def exchange(_: Ranks, document: object) -> list[object]:
        now[0] += 2.0
        return [document]

    monkeypatch.setattr(Ranks, "gather_all", exchange)
    ranks = Ranks(1, 2)
    with ranks.clock("update"):
        with ranks.together():
            now[0] += 2.5
        now[0] += 0.5
    with pytest.raises(ZeroDivisionError), ranks.together():
        raise ZeroDivisionError
    with ranks.together("records"):
        now[0] += 1.0
    assert ranks.clock.lap() == {"ranks": 4.0, "update": 3.0, "records": 2.0, "total": 10.0}
    assert ranks.clock.lap() == {"total": 0.0}
    with ONE_RANK.together():
        pass
    assert "ranks" not in ONE_RANK.clock.lap()


def test_phases_inside_a_phase_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def spend(seconds: float, phase: str, *inside: tuple[float, str]) -> None:
        with subject(phase):
            now[0] += seconds
            for one in inside:
                spend(*one)

    subject = clock.Clock()
    spend(1.0, "a", (2.0, "b"), (4.0, "a"), (8.0, "c"))
    spend(16.0, "b")
    assert subject.lap() == {"a": 5.0, "b": 18.0, "c": 8.0, "total": 31.0}
