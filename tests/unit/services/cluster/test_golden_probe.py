"""GoldenProbe over a real queue and a simulated clock: busy scorers are healthy, stuck or drifted ones are not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services import golden
from services.batching import Batcher
from services.cluster.golden_probe import GoldenProbe, ProbeTimeouts
from services.golden import GoldenItem
from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec, run_batch
from services.settings import load
from synod.contracts import ImageInput, Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Unavailable
from tests.outcomes import until

ROOT = Path(__file__).parents[4]
TIMEOUTS = ProbeTimeouts(period_s=60, probe_s=30, batch_s=600)
GOLDEN = (GoldenItem(ScoreItem(prompt="0.5"), {"number": 0.5}), GoldenItem(ScoreItem(prompt="0.25"), {"number": 0.25}))


class Number:
    """Scores a prompt as the number in it; a prompt 'hold' waits for `release`."""

    spec = ScorerSpec("number", ("prompt",), 0.0, 1.0, "a test", "a test")

    def __init__(self) -> None:
        self.offset = 0.0
        self.release = threading.Event()
        self.batches: list[list[str]] = []

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        prompts = [item.prompt or "" for item in items]
        self.batches.append(prompts)
        if any(prompt.startswith("hold") for prompt in prompts):
            self.release.wait(30)
            self.release.clear()
        return [Score(float(prompt.removeprefix("hold ")) + self.offset) for prompt in prompts]


class Subject:
    """A probe over the batcher of a Number."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.scorer = Number()
        self.probed: list[Sequence[ScoreItem]] = []
        self.lost = False
        self.batcher = Batcher(self.run, max_images=4, wait_s=0.0, max_queued=16)
        self.other_ended_s: float | None = None  # when another scorer's batch left the device
        self.golden_probe = GoldenProbe(
            "number", GOLDEN, 1e-3, self.probe, TIMEOUTS, free_for_s=self.free_for_s, now_s=lambda: self.now_s
        )

    def free_for_s(self) -> float:
        return 1e9 if self.other_ended_s is None else self.now_s - self.other_ended_s

    async def probe(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.probed.append(items)
        if self.lost:
            await asyncio.Event().wait()
        return await self.batcher.score(items, first=True)

    def run(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        with self.golden_probe.running(items, self.batcher.batches):
            return run_batch(self.scorer, items)

    def check(self) -> None:
        self.golden_probe.check(idle=self.batcher.held_images == 0)

    async def pulse(self, now_s: float) -> None:
        """Set the clock, check health as Serve does, and let the event loop run."""
        self.now_s = now_s
        self.check()
        await asyncio.sleep(0)

    def ask(self, *prompts: str) -> asyncio.Task[list[Outcome]]:
        return asyncio.create_task(self.batcher.score([ScoreItem(prompt=prompt) for prompt in prompts]))

    async def begun(self, batches: int) -> None:
        await until(lambda: len(self.scorer.batches) >= batches)

    async def answered(self) -> None:
        await until(lambda: self.golden_probe._probe is None)


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    subject = Subject()
    yield subject
    for _ in range(8):
        subject.scorer.release.set()
        await asyncio.sleep(0)
    await subject.batcher.close()


async def test_an_idle_scorer_is_probed_once_a_period(subject: Subject) -> None:
    await subject.pulse(59.9)
    assert subject.probed == []
    await subject.pulse(60)
    await subject.answered()
    await subject.pulse(119)
    assert len(subject.probed) == 1
    await subject.pulse(120)
    await subject.answered()
    assert len(subject.probed) == 2


async def test_drift_while_serving_fails_all_later_checks(subject: Subject) -> None:
    await subject.pulse(60)
    await subject.answered()
    await subject.pulse(61)
    subject.scorer.offset = 0.25
    await subject.pulse(120)
    await subject.answered()
    with pytest.raises(RuntimeError, match=r"'number' does not score as recorded: golden item 0 scored 0\.75"):
        subject.check()


async def test_a_temporary_failure_is_no_drift(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the last result as it is. The other golden items are compared even so."""

    def score(items: Sequence[ScoreItem]) -> list[Outcome]:
        unavailable = ScoreFailure.of(Unavailable("the judge failed (503)"))
        return [unavailable if item.prompt == "0.5" else Score(0.25 + subject.scorer.offset) for item in items]

    with monkeypatch.context() as patch:
        patch.setattr(subject.scorer, "score", score)
        await subject.pulse(60)
        await subject.answered()
        subject.check()
        subject.scorer.offset = 0.5
        await subject.pulse(120)
        await subject.answered()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"golden item 1 scored 0\.75"):
                subject.check()
            subject.scorer.offset = 0.0
            await subject.golden_probe._run_probe()  # the first item fails again, so the drift stays
    await subject.golden_probe._run_probe()
    subject.check()


async def test_a_busy_scorer_is_healthy_during_a_long_batch(subject: Subject) -> None:
    """During a batch of nearly ten minutes the probe starts one period late, and runs in the next batch."""
    call = subject.ask("hold 1")
    await subject.begun(1)
    await subject.pulse(60)
    assert subject.probed == []
    for now_s in (120, 200, 400, 599):
        await subject.pulse(now_s)
    assert len(subject.probed) == 1
    others = [subject.ask("0.125") for _ in range(6)]
    await asyncio.sleep(0)
    subject.scorer.release.set()
    await subject.answered()
    assert subject.scorer.batches[1][:2] == ["0.5", "0.25"]
    await asyncio.gather(call, *others)
    await subject.pulse(600)


async def test_a_batch_beyond_the_limit_is_unhealthy(subject: Subject) -> None:
    call = subject.ask("hold 1")
    await subject.begun(1)
    await subject.pulse(599)
    with pytest.raises(RuntimeError, match="one batch for 601 s"):
        await subject.pulse(601)
    subject.scorer.release.set()
    await call


@pytest.mark.parametrize(
    ("batches", "message"),
    [(2, "not reached its golden items for 31 s, though 2 batches ended"), (0, "nothing else to do")],
)
async def test_a_queue_that_skips_the_probe_is_unhealthy(subject: Subject, batches: int, message: str) -> None:
    subject.lost = True
    await subject.pulse(60)
    for _ in range(batches):
        await subject.ask("0.125")
    await subject.pulse(90)
    with pytest.raises(RuntimeError, match=message):
        await subject.pulse(91)


async def test_another_scorers_long_batch_is_healthy(subject: Subject) -> None:
    subject.lost = True
    await subject.pulse(60)
    for now_s in (100, 500):
        subject.other_ended_s = now_s
        await subject.pulse(now_s)
    await subject.pulse(530)
    with pytest.raises(RuntimeError, match="not answered its golden items for 471 s"):
        await subject.pulse(531)


async def test_a_device_that_hangs_on_the_probe_is_unhealthy(subject: Subject) -> None:
    release = threading.Event()
    subject.scorer.score = lambda items: [release.wait(30)] and [Score(0.0)] * len(items)  # type: ignore[method-assign]
    await subject.pulse(60)
    await until(lambda: subject.golden_probe._runs == "probe")
    await subject.pulse(90)
    with pytest.raises(RuntimeError, match="nothing else to do"):
        await subject.pulse(91)
    release.set()


async def test_a_probe_in_a_long_batch_of_users_is_healthy(subject: Subject) -> None:
    call = subject.ask("hold 1")
    await subject.begun(1)
    await subject.pulse(120)
    second = subject.ask("hold 0.5")
    await asyncio.sleep(0)
    subject.scorer.release.set()
    await subject.begun(2)
    assert subject.scorer.batches[1] == ["0.5", "0.25", "hold 0.5"]
    for now_s in (150, 300, 700):
        await subject.pulse(now_s)
    subject.scorer.release.set()
    await asyncio.gather(call, second)
    await subject.answered()
    await subject.pulse(701)


async def test_a_multi_batch_probe_does_not_count_itself(subject: Subject) -> None:
    subject.lost = True
    await subject.pulse(60)
    first, second = subject.probed[0]
    for one in (first, second):
        with subject.golden_probe.running([one], 1):
            pass
    with subject.golden_probe.running([first, ScoreItem(prompt="0.125")], 2):
        await subject.pulse(200)


async def test_the_parts_of_one_batch_count_once(subject: Subject) -> None:
    """A bad item is looked for by halves, and each may take long; but no other batch has passed the probe over."""
    subject.lost = True
    await subject.pulse(60)
    for number in (1, 1, 1, 1, 1, 2):
        with subject.golden_probe.running([ScoreItem(prompt="0.125")], number):
            await subject.pulse(subject.now_s + 8)
    with pytest.raises(RuntimeError, match="has not reached its golden items for 48 s, though 2 batches ended"):
        subject.check()


async def test_a_full_queue_accepts_the_probe(subject: Subject) -> None:
    calls = [subject.ask("hold 1"), subject.ask(*["0.125"] * 15)]
    await subject.begun(1)
    await subject.pulse(120)
    subject.scorer.release.set()
    await asyncio.gather(*calls)
    await subject.answered()
    assert subject.scorer.batches[1][:2] == ["0.5", "0.25"]
    subject.check()


async def test_without_golden_items_nothing_is_probed() -> None:
    probed: list[Any] = []

    async def score(items: Sequence[ScoreItem]) -> list[Outcome]:
        probed.append(items)
        return []

    GoldenProbe("number", (), 1e-3, score, TIMEOUTS, now_s=lambda: 1e9).check(idle=True)
    assert probed == []


class Swapped:
    """A scorer that receives BGR instead of RGB."""

    def __init__(self, scorer: Scorer) -> None:
        self.spec, self._scorer = scorer.spec, scorer

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]:
        return self._scorer.score([swapped(item) for item in items])


def swapped(item: ScoreItem) -> ScoreItem:
    def bgr(image: ImageInput) -> ImageInput:
        assert isinstance(image, np.ndarray)
        return np.ascontiguousarray(image[..., ::-1])

    return replace(
        item,
        image=None if item.image is None else bgr(item.image),
        references=tuple(map(bgr, item.references)),
    )


@pytest.mark.parametrize("name", ["ber", "der", "fer", "geneval"])
def test_embedded_golden_items_distinguish_rgb_from_bgr(name: str) -> None:
    """Each embedded scorer that reads images passes its golden check, but not with red and blue swapped."""
    settings = load(ROOT / "deploy/configs/embedded.toml", {})
    assert settings.golden is not None
    items = golden.load(Path(settings.golden))
    scorer, tolerance = registry.build(name, settings.scorers[name]), settings.scorers[name].golden_tolerance
    assert golden.find_drift(scorer, items, tolerance) is None
    assert "recorded is" in str(golden.find_drift(Swapped(scorer), items, tolerance))
