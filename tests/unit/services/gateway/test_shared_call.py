"""A shared call runs once for all that await it, in its own thread."""

from __future__ import annotations

import asyncio
import threading
from itertools import count

import pytest

from services.gateway.shared_call import SharedCall


async def test_callers_share_the_call_in_progress() -> None:
    numbers, go = count(), threading.Event()
    subject = SharedCall(lambda: (go.wait(20), next(numbers))[1])
    waiting = [asyncio.create_task(subject.result()) for _ in range(50)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*waiting) == [0] * 50
    assert await subject.result() == 1


async def test_result_serves_until_it_is_too_old() -> None:
    numbers = count()
    subject = SharedCall(lambda: next(numbers), max_age_s=3600)
    assert [await subject.result() for _ in range(3)] == [0, 0, 0]


async def test_error_reaches_its_callers_and_is_not_kept() -> None:
    outcomes = [1, 0]
    subject = SharedCall(lambda: 1 // outcomes.pop(), max_age_s=3600)
    with pytest.raises(ZeroDivisionError):
        await subject.result()
    assert await subject.result() == 1


async def test_call_outlives_a_caller_that_gives_up() -> None:
    go, calls = threading.Event(), list[None]()
    subject = SharedCall(lambda: (calls.append(None), go.wait(20)), max_age_s=3600)
    with pytest.raises(TimeoutError):
        await subject.result(timeout_s=0.01)
    go.set()
    await subject.result(timeout_s=20)
    assert len(calls) == 1
