"""`screen.select` "auto" in a run: what is drawn, how screens move, and that a resumed run moves alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict

import numpy as np
import pytest

from synod.contracts import ScoreItem
from tests.unit.trainer import synthetic
from tests.unit.trainer.algorithms.test_auto import equal_groups
from tests.unit.trainer.loops import (
    AUTO,
    UPDATES_ARE_DEAR,
    MakePolicy,
    MakeSettings,
    equal,
    every_slope,
    lines,
    previews_of,
    priced,
    run_loop,
    same_images,
    tasks,
    weights,
)
from tests.unit.trainer.reward_services import Judge, answered, brightness
from trainer.algorithms.advantage import Slope
from trainer.algorithms.audit import Correlation
from trainer.algorithms.auto import EVIDENCE, AutoScreen, Foresight
from trainer.algorithms.costs import Costs, Work
from trainer.algorithms.screen import best_and_worst
from trainer.clock import Clock
from trainer.credit import modality_advantages
from trainer.groups import ScoredGroup, from_document, to_document
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END
from trainer.report.metrics import Metrics
from trainer.report.page import charts, foresight, write_report
from trainer.sampling import finish, sample_previews
from trainer.screen_auto import AutoScreens, auto_line, auto_record, moves, restored_screen, update_screens
from trainer.screen_plan import ScreenPlan, auto_plan, fixed_plan
from trainer.settings import TrainerSettings
from trainer.types import MODALITIES, Reward, RewardSpec

THREE = {**AUTO, "PROMPTS_PER_STEP": "3", "DATA__GENEVAL_SHARE": "0.34"}  # a visual, a textual and a GenEval task


def length(item: ScoreItem) -> float:
    """A score that reads only the answer, and is 0 on the visual pathway."""
    if item.reasoning is None or " has a " not in item.reasoning.segments[0]:
        return 0.0
    return len(item.reasoning.text) / 100


class Rewards(Judge):
    """The reward is the length of the answer and the brightness of the image; both surrogates are parts of it."""

    def __init__(self) -> None:
        super().__init__(lambda item: length(item) + brightness(item))

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        assert reward is not None
        return answered([Reward(length(item) + (0.0 if item.image is None else brightness(item))) for item in items])


@pytest.fixture
def talking(policy: ShowO) -> ShowO:
    policy.phi.lm_head.bias.data[policy.vocab.id(END)] -= 4.0  # so that answers differ
    return policy


def drawn(policy: ShowO, settings: TrainerSettings, *plans: ScreenPlan) -> list[ScoredGroup]:
    """A group of the first step's textual task by each plan, of one seed."""
    task = next(one for one in tasks(settings) if one.pathway == "textual")
    judge, key, clock = Rewards(), (settings.seed, 0, 0), Clock()
    found = [previews_of(sample_previews(policy, judge, task, plan, settings, key, clock)) for plan in plans]
    return [finish(policy, judge, previews, settings, clock).wait() for previews in found]


def test_each_step_draws_what_it_costs(talking: ShowO, tiny_settings: MakeSettings) -> None:
    """Plain groups draw two; screens four, of which two are finished, or all at the last step."""
    settings = tiny_settings(**THREE, SCREEN__AUDIT="1e-9")
    task = next(one for one in tasks(settings) if one.pathway == "textual")
    steps = (None, 0, 1, 2, 4)
    plans = [auto_plan(task, settings, AutoScreen(step, EVIDENCE), (0, 0, 0)) for step in steps]
    groups = drawn(talking, settings, *plans)
    assert [group.previews.screened.drawn for group in groups] == [2, 4, 4, 4, 4]
    assert [len(group.rewards) for group in groups] == [2, 2, 2, 2, 4]
    assert [group.previews.step for group in groups] == [0, 0, 1, 2, 0]
    for group, step in zip(groups, steps, strict=True):
        if step in (0, 1, 2):
            assert group.previews.screened == best_and_worst(group.previews.scores, 2)
    whole = {rollout.index: image for rollout, image in zip(groups[-1].rollouts, groups[-1].images, strict=True)}
    for group in groups:  # a rollout follows from its seed, whatever screened it
        assert same_images(group.images, [whole[rollout.index] for rollout in group.rollouts])


def test_measuring_changes_no_image(talking: ShowO, tiny_settings: MakeSettings) -> None:
    """All are finished, and scored on the way as a screen at each step scores them."""
    settings = tiny_settings(**THREE, SCREEN__AUDIT="1")
    task = next(one for one in tasks(settings) if one.pathway == "textual")
    plan = auto_plan(task, settings, AutoScreen(None, EVIDENCE), (0, 0, 0))
    assert plan == ScreenPlan(4, 4, measured=(0, 1, 2))
    screens = [ScreenPlan(4, 2, step, is_scored=True, both_tails=True) for step in (0, 1, 2)]
    measured, unscreened, *screened = drawn(talking, settings, plan, ScreenPlan(4, 4), *screens)
    assert same_images(measured.images, unscreened.images)
    assert measured.rewards == unscreened.rewards
    assert measured.previews.foretold == {
        step: group.previews.scores for step, group in zip((0, 1, 2), screened, strict=True)
    }
    found = from_document(task, json.loads(json.dumps(to_document(measured))))
    assert found.previews.foretold == measured.previews.foretold
    assert from_document(task, json.loads(json.dumps(to_document(unscreened)))).previews.foretold is None


def test_a_share_of_the_groups_measures(tiny_settings: MakeSettings) -> None:
    """Which they are follows from the key alone; but of the first, until there is evidence, all do."""
    settings = tiny_settings(**THREE, SCREEN__AUDIT="0.25")
    task = tasks(settings)[0]
    found, others, first = (
        [auto_plan(task, settings, screen, (0, step, i)).measured is not None for step in range(100) for i in range(4)]
        for screen in (AutoScreen(0, EVIDENCE), AutoScreen(None, 99), AutoScreen(0, EVIDENCE - 1))
    )
    assert found == others
    assert sum(found) == pytest.approx(100, abs=30)
    assert all(first)


def test_a_screen_is_centred_by_all_its_answers(talking: ShowO, tiny_settings: MakeSettings) -> None:
    """Whatever `loss.baseline` is; and a group that is finished as a whole puts its extremes into the update."""
    settings = tiny_settings(**THREE, SCREEN__AUDIT="1e-9", LOSS__CREDIT="total")
    assert settings.loss.baseline == "group"
    screened, whole = drawn(
        talking, settings, ScreenPlan(4, 2, 0, is_scored=True, both_tails=True), ScreenPlan(4, 4, measured=())
    )
    slopes = every_slope(dict.fromkeys(MODALITIES, Slope(xy=16.0, xx=16.0, freedom=20.0)))  # one reward for one score
    (first, second) = modality_advantages([screened, whole], slopes, settings.loss, settings.screen)["text"]
    rewards = np.array([reward.value for reward in screened.rewards])
    scores = np.array(screened.previews.scores)
    baseline = rewards.mean() - (scores[list(screened.previews.screened.indices)].mean() - scores.mean())
    assert first.advantage.numpy() == pytest.approx(rewards - baseline, abs=1e-6)
    every = np.array([reward.value for reward in whole.rewards])
    extreme = sorted(np.argsort(-np.abs(every - every.mean()))[:2])
    assert list(second.places) == extreme
    assert second.advantage.numpy() == pytest.approx((every - every.mean())[extreme], abs=1e-6)


def test_a_run_moves_its_screens_and_resumes(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates are dear, so screens move to finished images, but where previews foretell the reward.

    A resumed run is the whole one, bit for bit.
    """
    monkeypatch.setattr("trainer.state.update_costs", priced(UPDATES_ARE_DEAR))
    monkeypatch.setattr("trainer.train.log_images", lambda *_: None)
    found = []
    for name, ends in (("whole", ("5",)), ("parts", ("2", "4", "5"))):
        for steps in ends:
            settings = tiny_settings(
                **THREE, SCREEN__AUDIT="0.6", OPTIMIZER__LR="1e-5", STEPS=steps, RUN_DIR=f'"{name}"'
            )
            policy = make_policy()
            state = run_loop(settings, make_policy, Rewards(), policy)
        found.append((weights(policy), lines(settings.run_dir), state))
    (before, whole, state), (after, parts, resumed) = found
    assert equal(before, after)
    assert whole == parts
    assert (state.screens, state.costs) == (resumed.screens, resumed.costs)
    assert whole[0]["screens"] == {"visual": 0, "textual": 0, "none": None}
    assert [line["screens"]["visual"] for line in whole] == [0, 0, 4, 4, 4]  # a pathway's first three groups measure
    assert whole[-1]["screens"] == {"visual": 4, "textual": 2, "none": 4}
    assert (state.screens["textual"].foresights[0].correlation.value or 0.0) > 0.9
    assert state.screens["visual"].foresights[0].correlation.value is None  # equal scores


def test_it_is_said_where_screens_move(tiny_settings: MakeSettings) -> None:
    """In the log, in metrics.jsonl and on the page: a correlation of .6, and previews as dear as images, do not pay."""
    settings, costs = tiny_settings(**THREE), Costs(Work(steps=1.0), Work(1, 1, 1, 1, 1, 1))
    good, perfect = (
        Foresight(equal_groups(9, rho), 7.2, 5.76, missed, equal_groups(9, by_rank))
        for rho, missed, by_rank in ((0.6, 3.6, 0.5), (1.0, 0.0, 1.0))
    )
    before: AutoScreens = {"textual": AutoScreen(0, 9, {0: Foresight(), 2: good, 4: perfect}), "visual": AutoScreen(0)}
    screens, _ = update_screens(before, [], costs, settings)
    assert {pathway: screen.step for pathway, screen in screens.items()} == {"textual": 0, "visual": 0}
    dear = Costs(Work(answers=4.0, steps=1.0, scores=4.0), Work(1, 1, 1, 1, 1, 1))
    after, gains = update_screens(before, [], dear, settings)
    values = "finished images 0.90, previews at step 2 0.47 ± 0.00, finished answers 0.40"
    shown = f"(signal per second of plain groups, 9 groups measured: {values})"
    found = f'pathway "textual" screens nothing, because no screen pays by more than its error {shown}'
    assert list(moves(before, after, gains, settings)) == [f"the screen moves: {found}"]
    unmeasured = 'pathway "visual" screens finished answers (0 groups measured)'
    assert auto_line(after, dear, settings) == f"screens: {found}; {unmeasured}"
    assert auto_line({}, dear, settings) is None
    record = json.loads(json.dumps(auto_record(after, gains)))
    assert record["screens"] == {"textual": None, "visual": 0}
    unknown, middling = ["not measured"] * 3, ["0.50 ± 0.00", "0.60 ± 0.00"]
    assert foresight([record]) == [
        ["textual", "no screen", "yes", "9", *unknown, "0%", "1.00", "1.00"],
        ["textual", "finished answers", "no", "9", *unknown, "50%", "1.00", "0.40"],
        ["textual", "previews at step 2", "no", "9", *middling, "40%", "25%", "1.29 ± 0.00", "0.47 ± 0.00"],
        ["textual", "finished images", "no", "9", *["1.00 ± 0.00"] * 2, "0%", "0%", "1.80 ± 0.00", "0.90 ± 0.00"],
        ["visual", "no screen", "no", "0", *unknown, "0%", "1.00", "1.00"],
        ["visual", "finished answers", "yes", "0", *["not measured"] * 6],
    ]
    early = {"none": AutoScreen(None, 1, before["textual"].foresights)}
    assert auto_line(early, costs, settings) == 'screens: pathway "none" screens nothing yet (1 group measured)'
    assert foresight([]) == foresight([{"step": 0}]) == []
    with Metrics(settings.run_dir) as metrics:
        metrics.log(0, {**synthetic.record(0), **record})
    page = write_report(settings.run_dir).read_text()
    assert "Which screen pays" in page
    assert "Signal per second of the screens: textual" in page
    found = next(one for one in charts([{"step": 7, **record}]) if one["title"].startswith("Signal per second"))
    assert [(line["label"], round(line["last"], 2)) for line in found["lines"]] == [
        ("finished answers", 0.4),
        ("previews at step 2", 0.47),
        ("finished images", 0.9),
    ]
    assert not any("screen in use" in one["title"] for one in charts([{"step": 0}]))


def test_other_rules_are_planned_as_before(tiny_settings: MakeSettings) -> None:
    settings = tiny_settings()
    assert fixed_plan(tasks(settings)[0], settings, 0.5) == ScreenPlan(12, 4, 1, True, 0.5, False, 0.5)
    unscreened = tiny_settings(SCREEN__THRESHOLD="none")
    assert fixed_plan(tasks(settings)[0], unscreened, None) == ScreenPlan(4, 4)


def test_a_restored_screen_is_the_saved_one() -> None:
    screen = AutoScreen(2, 3, {0: Foresight(Correlation().add([1.0, 2.0], [0.0, 1.0], [1.0, 1.0], 2), 0.5, 0.25)})
    assert restored_screen(asdict(screen)) == screen
