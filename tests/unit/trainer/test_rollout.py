"""Screening in draw order, requests to the service, and the random numbers of a rollout."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import httpx
import pytest
import torch

from tests.unit.trainer.loops import NO_SCREEN, MakeSettings, draw, previews_of, same_images, tasks
from tests.unit.trainer.reward_services import WIRE, Judge, judged
from trainer.algorithms.screen import screen
from trainer.clock import Clock
from trainer.distributed import ONE_RANK
from trainer.groups import Previews, ScoredGroup, from_document, to_document
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END
from trainer.rewards.service import RewardService
from trainer.rollout import draw_groups, replace_flat_groups
from trainer.sampling import finish, sample_previews
from trainer.scenarios import compound
from trainer.screen_plan import fixed_plan
from trainer.settings import TrainerSettings
from trainer.types import Prompt, Reward, RewardSpec, Task

KEY = (0, 0, 0)


def scripted(*scores: float | None) -> Judge:
    """Previews get these scores in draw order."""
    left = iter(scores)
    return Judge(surrogate=lambda item: next(left))


def explored(policy: ShowO, judge: Judge, settings: TrainerSettings, threshold: float | None) -> Previews:
    task = tasks(settings)[0]
    return previews_of(
        sample_previews(policy, judge, task, fixed_plan(task, settings, threshold), settings, KEY, Clock())
    )


@pytest.mark.parametrize(
    ("scores", "threshold", "cap", "indices", "filled", "passed", "judged", "rate"),
    [
        pytest.param((0.1, 0.9, 0.2, 0.8, 0.3, 0.7), 0.5, 12, (1, 3, 5), (), 3, 6, 0.5, id="first G in draw order"),
        pytest.param((0.1, 0.9, 0.2, 0.4, 0.4), 0.5, 5, (1, 3, 4), (3, 4), 1, 5, 0.2, id="filled at the cap"),
        pytest.param((0.5, 0.5, 0.5, 0.6, 0.6), 0.5, 5, (0, 3, 4), (0,), 2, 5, 0.4, id="a tie does not pass"),
        pytest.param((None, 0.9, None, 0.8, 0.7), 0.5, 5, (1, 3, 4), (), 3, 3, 1.0, id="lost scores do not pass"),
        pytest.param((None, 0.9, None, 0.2, None), 0.5, 5, (0, 1, 3), (0, 3), 1, 2, 0.5, id="lost scores fill last"),
        pytest.param((0.0, None, 0.0, None, 0.0, None), -1.0, 12, (0, 2, 4), (), 3, 3, 1.0, id="a lost score is not 0"),
        pytest.param((0.1, None, 0.3), None, 12, (0, 1, 2), (), 3, 3, 1.0, id="no threshold keeps all"),
    ],
)
def test_screening_by_hand(
    policy: ShowO,
    tiny_settings: MakeSettings,
    scores: tuple[float | None, ...],
    threshold: float | None,
    cap: int,
    indices: tuple[int, ...],
    filled: tuple[int, ...],
    passed: int,
    judged: int,
    rate: float | None,
) -> None:
    settings = tiny_settings(SCREEN__GROUP_SIZE="3", SCREEN__PREVIEW_BATCH_SIZE="3", SCREEN__MAX_PREVIEWS=str(cap))
    judge = scripted(*scores)
    found = explored(policy, judge, settings, threshold)
    assert found.scores == scores  # all that was scripted was drawn, and no more
    assert [rollout.index for rollout in found.rollouts] == list(range(len(scores)))
    assert (found.screened.indices, found.screened.topped_up) == (indices, filled)
    assert found.capped == bool(filled)
    assert (found.screened.passed, found.screened.num_scored, found.screened.drawn) == (passed, judged, len(scores))
    assert found.screened.pass_rate == rate
    assert found.threshold == threshold
    assert {rollout.image.step for rollout in found.rollouts} == {1}
    finished = finish(policy, judge, found, settings, Clock())
    assert tuple(rollout.index for rollout in finished.rollouts) == indices


def test_previews_are_scored_with_the_original_prompt(policy: ShowO, tiny_settings: MakeSettings) -> None:
    settings, judge = tiny_settings(PROMPTS_PER_STEP="2"), Judge()
    policy.phi.lm_head.bias.data[policy.vocab.id(END)] -= 4.0  # so that all say something
    textual = next(e for e in tasks(settings) if e.pathway == "textual")
    found = previews_of(
        sample_previews(policy, judge, textual, fixed_plan(textual, settings, None), settings, KEY, Clock())
    )
    assert {item.prompt for item, _ in judge.previewed} == {textual.prompt.text}
    assert all(item.reasoning is None and item.references == () for item, _ in judge.previewed)
    assert same_images([item.image for item, _ in judge.previewed], found.images)
    drawn_from = [rollout.image.prompt for rollout in found.rollouts]
    assert drawn_from == [compound(textual.prompt.text, rollout.answer) for rollout in found.rollouts]
    assert len(set(drawn_from)) > 1  # each reasons for itself


def test_finished_images_are_sent_in_batches(
    policy: ShowO, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.sampling.REFERENCES", 1)
    settings, judge = tiny_settings(PROMPTS_PER_STEP="2"), Judge()
    groups, rewards = draw(policy, judge, settings)
    assert [(reward, len(items)) for reward, items in judge.asked] == [
        (g.previews.task.reward, size) for g in groups for size in (3, 1)
    ]
    asked = [item for _, items in judge.asked for item in items]
    for group, found in zip(groups, rewards, strict=True):
        mine, asked = asked[:4], asked[4:]
        assert same_images([item.image for item in mine], group.images)
        assert same_images(policy.images([r.image for r in group.rollouts]), group.images)
        assert [item.reasoning and item.reasoning.text for item in mine] == [r.answer for r in group.rollouts]
        assert [len(item.references) for item in mine] == [1] * 4
        assert [reward.value for reward in found] == [judge.reward(item) for item in mine]
        assert {rollout.image.step for rollout in group.rollouts} == {4}


def test_rewards_are_requested_before_the_next_batch(
    policy: ShowO, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service answers only when all four requests of the step have arrived, and a batch is finished only after
    the previous batch's request arrived: requests sent later, or one after the other, would deadlock."""
    settings = tiny_settings(PROMPTS_PER_STEP="2", REWARD_BATCH_SIZE="2")
    received, together = [threading.Event() for _ in range(4)], threading.Barrier(4, timeout=60)
    number, lock, judge = itertools.count(), threading.Lock(), Judge()

    def handle(http: httpx.Request) -> httpx.Response:
        request = WIRE.decode_request(http.content)
        if request.scorers != ("ber",):
            with lock:
                received[next(number)].set()
            together.wait()
        answer = WIRE.encode_response(judged(request, judge))
        return httpx.Response(200, content=answer, headers={"content-type": WIRE.content_type})

    chunks, denoise = itertools.count(), policy.denoise

    def watched(segments: Sequence[Any], until: int) -> list[Any]:
        if until == 4:
            assert all(event.wait(60) for event in received[: next(chunks)])
        return denoise(segments, until)

    monkeypatch.setattr(policy, "denoise", watched)
    service = RewardService(settings.rewards, transport=httpx.MockTransport(handle), log=pytest.fail)
    try:
        groups, rewards = draw(policy, service, settings)
    finally:
        together.abort()
        service.close()
    assert next(chunks) == 4
    for group, found in zip(groups, rewards, strict=True):
        assert [r.value for r in found] == [float(image.mean() / 255) for image in group.images]


def test_a_rollout_depends_only_on_its_index(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """Other batch sizes and other kept rollouts change only the rounding of float32."""
    whole = explored(policy, Judge(), tiny_settings(SCREEN__THRESHOLD=NO_SCREEN), None)
    by_one = explored(policy, Judge(), tiny_settings(SCREEN__THRESHOLD=NO_SCREEN, SCREEN__PREVIEW_BATCH_SIZE="1"), None)
    settings = tiny_settings(SCREEN__GROUP_SIZE="2", SCREEN__PREVIEW_BATCH_SIZE="2")
    screened = explored(policy, scripted(0.0, 1.0, 0.0, 1.0), settings, 0.5)
    assert screened.screened.indices == (1, 3)
    finished = [finish(policy, Judge(), e, settings, Clock()) for e in (whole, by_one, screened)]
    for i in (1, 3):
        a, b, c = (next(r for r in group.rollouts if r.index == i) for group in finished)
        for other in (b, c):
            assert other.answer == a.answer
            assert torch.equal(other.image.codes_TN, a.image.codes_TN)
            torch.testing.assert_close(other.image.logp_TN, a.image.logp_TN, rtol=0, atol=1e-4)


class Late(Judge):
    """Answers only when the loop waits for it: previews and rewards."""

    def __init__(self, pool: futures.Executor) -> None:
        super().__init__()
        self.pool = pool

    def submit_previews(self, items: Any, reward: Any = None) -> Any:
        return self.pool.submit(lambda: (time.sleep(0.02), super(Late, self).submit_previews(items).result())[1])

    def submit(self, items: Any, reward: Any) -> Any:
        return self.pool.submit(lambda: (time.sleep(0.02), super(Late, self).submit(items, reward).result())[1])


def test_the_clock_counts_every_phase(policy: ShowO, tiny_settings: MakeSettings) -> None:
    settings, clock = tiny_settings(), Clock()
    task = tasks(settings)[0]
    with futures.ThreadPoolExecutor(1) as pool:
        (group,) = draw_groups(
            policy,
            Late(pool),
            [task],
            (0, 0),
            0,
            lambda *_: fixed_plan(task, settings, None),
            settings,
            clock,
            ONE_RANK,
        )
    assert len(group.rewards) == 4
    spent = clock.lap()
    assert set(spent) == {"reason", "preview", "decode", "surrogate", "finish", "reward_wait", "total"}
    assert 0 < sum(v for k, v in spent.items() if k != "total") <= spent["total"]
    assert set(clock.lap()) == {"total"}


# -- groups without spread --------------------------------------------------------------------------------------------

FLAT, USEFUL, LOST = (0.5, 0.5), (0.5, 0.25), (0.5, None)


def group_of(number: int, values: Sequence[float | None]) -> ScoredGroup:
    """A group of task `number` with these rewards."""
    task = Task(f"task {number}", "none", Prompt(f"prompt {number}", "tag"), RewardSpec(ensemble="any"))
    previews = Previews(task, (), (), (), screen([], None, 2), None)
    return ScoredGroup(previews, (), (), tuple(Reward(value) for value in values), ())


@pytest.mark.parametrize("flat", [True, False])
def test_a_rank_decides_which_of_its_groups_are_flat(flat: bool) -> None:
    """The others take what it has found, even where they would round differently."""
    group = group_of(0, [0.5, 0.5] if flat else [0.5, 0.6])
    document = {**to_document(group), "rewards": to_document(group_of(0, [0.1, 0.2]))["rewards"]}
    assert from_document(group.previews.task, document).is_flat == group.is_flat == flat
    document["rewards"] = to_document(group_of(0, [0.3, 0.3]))["rewards"]
    assert from_document(group.previews.task, document).is_flat == flat


@pytest.mark.parametrize(
    ("own", "others", "kept", "replaced", "drawn"),
    [
        pytest.param([FLAT, USEFUL], [], "0 1", "", [], id="nothing to replace it with"),
        pytest.param([USEFUL, LOST], [USEFUL], "0 1", "", [], id="a lost reward is not flat"),
        pytest.param([FLAT, USEFUL, FLAT], [USEFUL] * 3, "3 1 4", "0 2", [(3, "3 4")], id="in place"),
        pytest.param([FLAT, FLAT], [USEFUL], "2 1", "0", [(2, "2")], id="fewer than flat groups"),
        pytest.param(
            [FLAT, FLAT], [USEFUL, FLAT, FLAT, USEFUL, USEFUL], "2 5", "0 1 3 4", [(2, "2 3"), (4, "4"), (5, "5")],
            id="until none is flat",
        ),
        pytest.param([FLAT], [FLAT, FLAT], "2", "0 1", [(1, "1"), (2, "2")], id="bounded"),
    ],
)  # fmt: skip
def test_flat_groups_are_replaced_in_order(
    own: list[Any], others: list[Any], kept: str, replaced: str, drawn: list[tuple[int, str]]
) -> None:
    """Tasks are numbered: first the step's own, then the replacements."""
    every = [group_of(number, values) for number, values in enumerate([*own, *others])]
    asked: list[tuple[int, str]] = []

    def numbers(groups: Sequence[ScoredGroup]) -> str:
        return " ".join(str(every.index(group)) for group in groups)

    def draw_groups(chosen: Sequence[Task], first: int) -> list[ScoredGroup]:
        found = [group for group in every if group.previews.task in chosen]
        asked.append((first, numbers(found)))
        return found

    tasks_left = [group.previews.task for group in every[len(own) :]]
    found = replace_flat_groups(every[: len(own)], tasks_left, draw_groups)
    assert tuple(map(numbers, found)) == (kept, replaced)
    assert asked == drawn
