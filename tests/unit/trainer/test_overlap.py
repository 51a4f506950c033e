"""Drawing of several groups at once: the same previews as one after another, whenever the scores arrive.

No thread and no clock: the requests are answered when the policy draws, or when the loop has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from synod.contracts import Pixels, ScoreItem
from tests.unit.trainer.loops import MakeSettings
from trainer.algorithms.screen import screen, top_up
from trainer.clock import Clock
from trainer.distributed import ONE_RANK
from trainer.errors import RewardServiceUnavailable
from trainer.groups import ScoredGroup
from trainer.rollout import draw_groups
from trainer.screen_plan import ScreenPlan, fixed_plan
from trainer.settings import TrainerSettings
from trainer.types import Modality, Prompt, Reward, RewardSpec, Seed, Task

FINAL = 4  # sampling steps of an image


class Pending(Future[list[Reward]]):
    """Fails where the loop would block."""

    def result(self, timeout: float | None = None) -> list[Reward]:
        assert self.done(), "a sampling continues before its scores have arrived"
        return super().result(timeout)


@dataclass(frozen=True)
class Drawn:
    """An image that is its group and index."""

    seed: Seed
    step: int = 0
    kind: Modality = "image"
    prompt: str = ""
    text: str = ""


@dataclass
class Recorder:
    """A policy and a service that record what they are asked, in order, as (what, group, indices)."""

    scores: Callable[[int, int], float | None]  # of a group and an index
    before_draw: Callable[[Recorder], None] = lambda recorder: None
    calls: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)
    pending: list[tuple[int, Pending, list[Reward]]] = field(default_factory=list)

    image_steps = FINAL
    module: Any = None

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Drawn]:
        return [Drawn(seed) for seed in seeds]

    def denoise(self, segments: Sequence[Drawn], until: int) -> list[Drawn]:
        self.before_draw(self)
        self.note("finish" if until == FINAL else "draw", [(one.seed[-2], one.seed[-1]) for one in segments])
        return [Drawn(one.seed, until) for one in segments]

    def images(self, segments: Sequence[Drawn]) -> list[Pixels]:
        return [np.full((1, 1, 3), (*one.seed[-2:], one.step), np.uint8) for one in segments]

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Pending:
        places = [place_of(item) for item in items]
        self.note("score", places)
        return self.request(places[0][0], [Reward(self.scores(*place)) for place in places])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Pending:
        places = [place_of(item) for item in items]
        self.note("reward", places)
        return self.request(places[0][0], [Reward(group + index / 100) for group, index in places])

    def note(self, what: str, places: Sequence[tuple[int, int]]) -> None:
        (group,) = {group for group, _ in places}  # no batch mixes groups
        self.calls.append((what, group, tuple(index for _, index in places)))

    def request(self, group: int, rewards: list[Reward]) -> Pending:
        future = Pending()
        self.pending.append((group, future, rewards))
        return future

    def answer(self, number: int = 0) -> None:
        _, future, rewards = self.pending.pop(number)
        future.set_result(rewards)

    def answer_all(self, group: int | None = None) -> None:
        for number in reversed(range(len(self.pending))):
            if group in (None, self.pending[number][0]):
                self.answer(number)


def place_of(item: ScoreItem) -> tuple[int, int]:
    group, index, _ = item.pixels()[0, 0].tolist()
    return group, index


def task_of(group: int) -> Task:
    return Task(f"key {group}", "none", Prompt("a prompt", "tag"), RewardSpec({"any": 1.0}))


def draw(
    recorder: Recorder,
    thresholds: Sequence[float | None],
    settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
    idle: Callable[[], None] = lambda: pytest.fail("nothing left to do"),
) -> list[ScoredGroup]:
    """The groups of a step; `idle` is called when the loop has nothing left to do but wait for scores."""
    tasks = [task_of(group) for group in range(len(thresholds))]

    def wait_for_scores(pending: Any, return_when: str) -> None:
        assert not any(future.done() for future in pending)
        while not any(future.done() for future in pending):
            idle()

    class Patient(Clock):
        """Rewards arrive when the loop waits for them."""

        def __call__(self, phase: str) -> Any:
            if phase == "reward_wait":
                recorder.answer_all()
            return super().__call__(phase)

    monkeypatch.setattr("trainer.rollout.wait", wait_for_scores)
    policy: Any = recorder

    def plan(task: Task, settings: TrainerSettings, key: Sequence[int]) -> ScreenPlan:
        return fixed_plan(task, settings, thresholds[tasks.index(task)])

    return draw_groups(policy, recorder, tasks, (0, 0), 0, plan, settings, Patient(), ONE_RANK)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[list[float | None]], list[float | None], dict[str, str]]:
    """Scores of every preview of each group, a threshold of each group, and settings."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    cap = draw(st.integers(size, 9))
    score = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    scores = draw(st.lists(st.lists(score, min_size=cap, max_size=cap), min_size=groups, max_size=groups))
    thresholds = draw(st.lists(st.none() | st.sampled_from([0.2, 0.5, 0.9]), min_size=groups, max_size=groups))
    options = {
        "SCREEN__GROUP_SIZE": str(size),
        "SCREEN__MAX_PREVIEWS": str(cap),
        "SCREEN__PREVIEW_BATCH_SIZE": str(draw(st.integers(1, 5))),
        "SCREEN__THRESHOLD": draw(st.sampled_from(["quantile", "quantile", "quantile", "none"])),
        "REWARD_BATCH_SIZE": str(draw(st.integers(1, 4))),
    }
    return scores, thresholds, options


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(step=steps(), data=st.data())
def test_groups_equal_those_of_a_plain_loop(
    step: tuple[list[list[float | None]], list[float | None], dict[str, str]],
    data: st.DataObject,
    tiny_settings: MakeSettings,
) -> None:
    """The plain loop is written here once more; scores arrive in any order, while others are drawn or at the last."""
    scores, thresholds, options = step
    settings = tiny_settings(**options)
    limits, unscreened = settings.screen, settings.screen.threshold == "none"

    def answer_some(recorder: Recorder) -> None:
        for _ in range(data.draw(st.integers(0, min(2, len(recorder.pending))))):
            recorder.answer(data.draw(st.integers(0, len(recorder.pending) - 1)))

    def answer_one() -> None:
        recorder.answer(data.draw(st.integers(0, len(recorder.pending) - 1)))

    recorder = Recorder(lambda group, index: scores[group][index], answer_some)
    with pytest.MonkeyPatch.context() as patch:
        found = draw(recorder, thresholds, settings, patch, answer_one)

    for group, (threshold, result) in enumerate(zip(thresholds, found, strict=True)):
        cap = limits.group_size if unscreened else limits.max_previews
        threshold = None if unscreened else threshold
        batches, seen = [], list[float | None]()
        while True:
            batches.append(tuple(range(len(seen), min(len(seen) + limits.preview_batch_size, cap))))
            seen += [None if unscreened else scores[group][index] for index in batches[-1]]
            screened = screen(seen, threshold, limits.group_size)
            if screened.is_full or len(seen) >= cap:
                break
        screened = top_up(screened, seen, limits.group_size)
        size = settings.reward_batch_size
        finished = [screened.indices[first : first + size] for first in range(0, len(screened.indices), size)]

        previews = result.previews
        assert (previews.scores, previews.threshold, previews.screened) == (tuple(seen), threshold, screened)
        assert [rollout.image.seed for rollout in previews.rollouts] == [(0, 0, group, i) for i in range(len(seen))]
        shown = 0 if unscreened else len(seen)  # images that nothing scores are not decoded
        assert [image[0, 0].tolist() for image in previews.images] == [[group, i, 1] for i in range(shown)]
        assert [image[0, 0].tolist() for image in result.images] == [[group, i, FINAL] for i in screened.indices]
        assert [reward.value for reward in result.rewards] == [group + i / 100 for i in screened.indices]
        batches = [] if unscreened else batches
        ahead = len([call for call in recorder.calls if call[:2] == ("draw", group)]) - len(batches)
        batches += [tuple(range(first, min(first + limits.preview_batch_size, cap)))
                    for first in range(len(seen), cap, limits.preview_batch_size)][:ahead]  # fmt: skip
        assert previews.dropped == sum(map(len, batches)) - shown
        calls = {what: [places for name, of, places in recorder.calls if (name, of) == (what, group)]
                 for what in ("draw", "score", "finish", "reward")}  # fmt: skip
        assert calls == {
            "draw": batches, "score": batches, "finish": finished, "reward": finished,
        }  # fmt: skip


def two(tiny_settings: MakeSettings, cap: int = 4) -> TrainerSettings:
    """Groups of two of at most `cap` previews, of which half are to pass, drawn two at a time."""
    small = {"GROUP_SIZE": 2, "PREVIEW_BATCH_SIZE": 2, "MAX_PREVIEWS": cap, "TARGET_PASS_RATE": 0.5}
    return tiny_settings(**{f"SCREEN__{key}": str(value) for key, value in small.items()}, REWARD_BATCH_SIZE="2")


def names(recorder: Recorder) -> list[str]:
    return [f"{what} {group}" for what, group, _ in recorder.calls]


def test_a_group_is_drawn_while_scores_are_pending(
    tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of each group arrive only while the other draws; the last ones while the first group is finished."""

    def before_draw(recorder: Recorder) -> None:
        drawing = len([name for name in names(recorder) if name.startswith("draw")])
        recorder.answer_all({1: 0, 2: 1, 3: 0, 4: 1}.get(drawing))

    recorder = Recorder(lambda group, index: float(index > 1), before_draw)
    draw(recorder, [0.5, 0.5], two(tiny_settings), monkeypatch)
    assert names(recorder) == [
        *("draw 0", "score 0", "draw 1", "score 1", "draw 0", "score 0", "draw 1", "score 1"),
        *("finish 0", "reward 0", "finish 1", "reward 1"),
    ]


def test_scores_at_once_draw_one_group_after_another(
    tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce(Recorder):
        def request(self, group: int, rewards: list[Reward]) -> Pending:
            future = super().request(group, rewards)
            self.answer_all()
            return future

    recorder = AtOnce(lambda group, index: float(index > 1))
    draw(recorder, [0.5] * 3, two(tiny_settings), monkeypatch)
    each = ("draw", "score", "draw", "score", "finish", "reward")
    assert names(recorder) == [f"{what} {group}" for group in range(3) for what in each]


def test_one_full_group_is_held_back(tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups 0 and 1 are full at once, group 2 waits: group 0 is finished at once, group 1 when nothing else is left.

    Then nothing is left at all, and group 2's scores arrive.
    """
    waited: list[list[str]] = []

    def before_draw(recorder: Recorder) -> None:
        for group in (0, 1):
            recorder.answer_all(group)

    def idle() -> None:
        waited.append(names(recorder))
        recorder.answer_all()

    recorder = Recorder(lambda group, index: 1.0, before_draw)
    draw(recorder, [0.5] * 3, two(tiny_settings, cap=2), monkeypatch, idle)
    drawn = ["draw 0", "score 0", "draw 1", "score 1", "draw 2", "score 2"]
    assert waited == [[*drawn, "finish 0", "reward 0", "finish 1", "reward 1"]]
    assert names(recorder) == [*waited[0], "finish 2", "reward 2"]


def test_a_lone_group_is_drawn_ahead(tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are expected to fill the group; none of the first passes, all of the second: the third is dropped."""
    waited: list[int] = []

    def idle() -> None:
        waited.append(len(names(recorder)))
        recorder.answer()

    recorder = Recorder(lambda group, index: float(index > 1))
    (group,) = draw(recorder, [0.5], two(tiny_settings, cap=8), monkeypatch, idle)
    assert names(recorder) == ["draw 0", "score 0"] * 3 + ["finish 0", "reward 0"]
    assert waited == [4, 6]
    assert (group.previews.screened.indices, group.previews.screened.drawn, group.previews.dropped) == ((2, 3), 4, 2)


def test_nothing_is_drawn_ahead_without_a_threshold(
    tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pass, so the first batch fills the group."""
    recorder = Recorder(lambda group, index: 0.0)
    (group,) = draw(recorder, [None], two(tiny_settings), monkeypatch, lambda: recorder.answer())
    assert names(recorder) == ["draw 0", "score 0", "finish 0", "reward 0"]
    assert group.previews.dropped == 0


def test_a_lost_service_ends_the_step(tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of group 1 fail while those of group 0 are pending."""

    def idle() -> None:
        recorder.pending[1][1].set_exception(RewardServiceUnavailable("planted"))

    recorder = Recorder(lambda group, index: 1.0)
    with pytest.raises(RewardServiceUnavailable, match="planted"):
        draw(recorder, [0.5, 0.5], two(tiny_settings, cap=2), monkeypatch, idle)
    assert names(recorder) == ["draw 0", "score 0", "draw 1", "score 1"]
