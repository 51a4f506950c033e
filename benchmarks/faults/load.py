"""Concurrent clients that score numbered images, and a tally of the outcome of each."""

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
    """Return unused numbers, whose scores no store has. The odd stride spreads them over the colours."""
    return [next(_fresh) * 7919 % NUMBERS for _ in range(amount)]


@dataclass
class Tally:
    """Outcomes of the requested images. Only `asked`, `right` and planned failures may differ from 0.

    lost: images without a score, counted by error code in `failed`. disordered: images with another image's score.
    invented: images with a score of no image. doubled: scores of one image beyond its first.
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
        """Record that these images are about to be requested."""
        with self._lock:
            self.asked += len(numbers)
            self._of_run.update(numbers)

    def outcome(self, number: int, outcome: Outcome) -> None:
        """Record the outcome returned for this image."""
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
        """Return the counts for the results file."""
        names = ("asked", "right", "lost", "doubled", "disordered", "invented")
        return {name: getattr(self, name) for name in names} | {"failed": dict(self.failed)}

    def complete(self) -> bool:
        """Return whether every image has its own score exactly once."""
        return self.right == self.asked and self.doubled == 0


class Counting(httpx.HTTPTransport):
    """A transport that counts every attempt's status or exception, including those that a client retries."""

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
    """Score images with CLIENTS real clients; return how often each status or exception was received.

    `at[n]()` is called once, when n images are done. Until all such calls have returned, further images are scored, so
    that the service is never idle. Half of the images are sent as PNG, the others raw.
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
    """Send one request and record its outcomes."""
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
    """Return the image as PNG if its number is odd, else raw."""
    return encode_png(image_of(number)) if number % 2 else image_of(number)
