"""Concurrent clients over numbered images, and the tally of what became of every one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import httpx

from benchmarks.faults.scorers import NUMBERS, image_of, number_of, value
from synod.client import SynodClient
from synod.contracts import ImageData, ImageInput, Outcome, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import SynodError
from synod.images import encode_png

CLIENTS: Final = 16
PER_REQUEST: Final = 8
_fresh = count(1)


def fresh(amount: int) -> list[int]:
    """Numbers that were not given before: no store knows their scores. Odd strides spread them over the colours."""
    return [next(_fresh) * 7919 % NUMBERS for _ in range(amount)]


@dataclass
class Tally:
    """What became of every image asked for. All but `asked`, `right` and what was planned must stay 0.

    lost: no score came, counted by the error's code in `failed`. disordered: another image's score. invented: no
    image's score. doubled: scores beyond the first that belong to one image.
    """

    asked: int = 0
    right: int = 0
    lost: int = 0
    disordered: int = 0
    invented: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    answers: Counter[float] = field(default_factory=Counter)
    _of_run: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, numbers: Sequence[int]) -> None:
        """These images are about to be asked for."""
        with self._lock:
            self.asked += len(numbers)
            self._of_run.update(numbers)

    def outcome(self, number: int, outcome: Outcome) -> None:
        """What came back in the place of this image."""
        with self._lock:
            if isinstance(outcome, ScoreFailure):
                self.lost += 1
                self.failed[outcome.code] += 1
                return
            self.answers[number_of(outcome.value)] += 1
            if outcome.value == value(number):
                self.right += 1
            elif number_of(outcome.value) in self._of_run:
                self.disordered += 1
            else:
                self.invented += 1

    @property
    def doubled(self) -> int:
        return sum(times - 1 for times in self.answers.values())

    @property
    def done(self) -> int:
        return self.right + self.lost + self.disordered + self.invented

    def counts(self) -> dict[str, Any]:
        """For the record."""
        names = ("asked", "right", "lost", "doubled", "disordered", "invented")
        return {name: getattr(self, name) for name in names} | {"failed": dict(self.failed)}

    def whole(self) -> bool:
        """Every image has its own score, once."""
        return self.right == self.asked and self.doubled == 0


class Counting(httpx.HTTPTransport):
    """The network, counting every attempt's status or exception: what a client's retries covered."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = super().handle_request(request)
        except httpx.HTTPError as error:
            self._seen[type(error).__name__] += 1
            raise
        self._seen[str(response.status_code)] += 1
        return response


def drive(
    url: str,
    numbers: Sequence[int],
    scorer: str,
    tally: Tally,
    *,
    at: Mapping[int, Callable[[], None]] | None = None,
    image: Callable[[int], ImageInput] | None = None,
    per_request: int = PER_REQUEST,
) -> Counter[str]:
    """CLIENTS real clients score these images, into the tally; how many attempts were answered what.

    `at[n]()` is called, once, as soon as n images are done; until all have returned, fresh images follow the last
    ones, so that none of them meets an idle service. Half of the images go as PNG, the others raw.
    """
    seen, plans = Counter[str](), dict(at or {})
    acting: list[Callable[[], None]] = []
    work: Iterator[Sequence[int]] = iter([numbers[i : i + per_request] for i in range(0, len(numbers), per_request)])
    lock = threading.Lock()

    def chunk() -> Sequence[int] | None:
        with lock:
            return next(work, None) or (fresh(per_request) if plans or acting else None)

    def act() -> None:
        with lock:
            due = [plans.pop(n) for n in sorted(plans) if n <= tally.done]
            acting.extend(due)
        for one in due:
            try:
                one()
            finally:
                acting.remove(one)

    def client() -> None:
        with SynodClient(url, timeout_s=120, transport=Counting(seen)) as synod:
            while asked := chunk():
                score(synod, asked, scorer, tally, image or either)
                act()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for running in [pool.submit(client) for _ in range(CLIENTS)]:
            running.result()
    return seen


def score(
    client: SynodClient, numbers: Sequence[int], scorer: str, tally: Tally, image: Callable[[int], ImageInput]
) -> None:
    """One request, into the tally."""
    tally.expect(numbers)
    request = ScoreRequest(tuple(ScoreItem(image(number), prompt="a colour") for number in numbers), (scorer,))
    outcomes: Sequence[Outcome]
    try:
        outcomes = [result.scores[scorer] for result in client.score(request).results]
    except SynodError as error:
        outcomes = [ScoreFailure.of(error)] * len(numbers)
    for number, outcome in zip(numbers, outcomes, strict=True):
        tally.outcome(number, outcome)


def either(number: int) -> ImageData:
    """The image, raw or as PNG."""
    return encode_png(image_of(number)) if number % 2 else image_of(number)
