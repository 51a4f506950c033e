"""Held-out evaluations of a run: when they are made, what they record, how they end a run, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from synod.contracts import ScoreItem
from synod.errors import SettingsError
from tests.unit.trainer.loops import MakePolicy, MakeSettings, equal, lines, weights
from tests.unit.trainer.reward_services import Judge, brightness
from trainer.algorithms.threshold import make_controller
from trainer.clock import Clock
from trainer.errors import RewardServiceUnavailable
from trainer.evaluate.during import HeldOut
from trainer.evaluate.heldout import AFTER, BEFORE, DURING, load_evaluation
from trainer.policy.show_o.policy import ShowO
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.train import train
from trainer.types import Reward, RewardSpec

EVALUATED = {
    "STEPS": "6",
    "LOSS__TEXT__BETA": "0",
    "LOSS__IMAGE__BETA": "0",
    "EVALUATE__PROMPTS": "3",
    "EVALUATE__EVERY": "2",
    "EVALUATE__SCORERS": "{ hps = 2.0, iqa = -1.0 }",
    "CHECKPOINT_EVERY": "100",
}


class Scores(Judge):
    """Brightness is the trained reward. The scorers held out give `heldout` + brightness, or nothing for None."""

    def __init__(self, heldout: Sequence[float | None] = (0.5,)) -> None:
        super().__init__()
        self.heldout = heldout
        self.asked_heldout = 0
        self.unavailable_at = 10**6

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        if "hps" not in reward.scorers:
            return super().submit(items, reward)
        assert dict(reward.scorers) == {"hps": 2.0, "iqa": -1.0}
        future: Future[list[Reward]] = Future()
        number, self.asked_heldout = self.asked_heldout, self.asked_heldout + 1
        if number >= self.unavailable_at:
            future.set_exception(RewardServiceUnavailable("planted"))
            return future
        value = self.heldout[min(number, len(self.heldout) - 1)]
        future.set_result([_reward(value, brightness(item)) for item in items])
        return future


def _reward(value: float | None, light: float) -> Reward:
    if value is None:
        return Reward(None, {"iqa": light})
    return Reward(2 * (value + light) - light, {"hps": value + light, "iqa": light})


def run_loop(settings: TrainerSettings, policy: ShowO, judge: Judge, log: Callable[[str], None] = print) -> HeldOut:
    held_out = HeldOut(settings, judge, log)
    held_out.before(policy)
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    state = train(settings, policy, judge, controller, log, held_out)
    held_out.after(policy, state.step)
    return held_out


def at(step: int, settings: TrainerSettings, policy: ShowO) -> TrainState:
    state = TrainState.new(policy, make_controller("none", 0.25), settings)
    state.step = step
    return state


def heldout_of(settings: TrainerSettings) -> list[float | None]:
    return [line["heldout"] and line["heldout"]["untrained"] for line in lines(settings.run_dir)]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "evaluation").iterdir())


def test_evaluations_are_made_every_n_steps(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings, judge = tiny_settings(**EVALUATED), Scores()
    policy = make_policy()
    run_loop(settings, policy, judge)
    files = ["after", "before", "step-000002", "step-000004"]
    assert names(settings.run_dir) == sorted([*files, *(f"{name}.json" for name in files)])
    found = [heldout is not None for heldout in heldout_of(settings)]
    assert found == [True, False, True, False, True, False]  # step 0 has the evaluation before training
    for name, step in ((BEFORE, 0), (DURING.format(4), 4)):
        rows = load_evaluation(settings.run_dir / name).rows
        for row in rows:
            assert row.reward is not None
            assert row.heldout == {"hps": pytest.approx(0.5 + row.reward), "iqa": pytest.approx(row.reward)}
            assert row.heldout_reward == pytest.approx(1.0 + row.reward)
        means = lines(settings.run_dir)[step]["heldout"]
        mean = sum(row.reward or 0 for row in rows) / 3
        scores = means.pop("scores")
        assert means == pytest.approx({"reward": mean, "untrained": 1 + mean})
        assert scores == pytest.approx({"hps": 0.5 + mean, "iqa": mean})
    again = HeldOut(settings, judge, print)
    again.before(policy)
    assert judge.asked_heldout == 4, "the evaluation before training was there"


def test_a_lost_score_is_missing(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(**EVALUATED)
    HeldOut(settings, Scores([None]), print).before(make_policy())
    rows = load_evaluation(settings.run_dir / BEFORE).rows
    assert [row.heldout_reward for row in rows] == [None] * 3
    assert all(list(row.heldout) == ["iqa"] and row.reward is not None for row in rows)
    held_out = HeldOut(settings, Scores(), print)
    means = held_out.means(0)
    assert means is not None
    assert (means["untrained"], means["scores"]["hps"]) == (None, None)
    assert means["scores"]["iqa"] is not None


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ((0.0, 9.0, 8.0, 8.5, 7.0, 6.0), 2, 6),  # 9 at step 2 is the best; steps 4 and 6 are below
        ((0.0, 1.0, 2.0, 3.0, 4.0, 5.0), 1, 10),
        ((5.0, 4.0, 9.0), 1, 2),
        ((5.0, None, 9.0, 8.0), 1, 6),  # without a score, an evaluation does not count
    ],
)
def test_patience_ends_the_run(
    make_policy: MakePolicy,
    tiny_settings: MakeSettings,
    values: tuple[float | None, ...],
    patience: int,
    stops: int,
) -> None:
    """Evaluation 0 is before training, the others after 2, 4, ... steps; brightness varies by less than 1."""
    settings = tiny_settings(**{**EVALUATED, "STEPS": "10", "EVALUATE__PATIENCE": str(patience)})
    judge = Scores(values)
    held_out = run_loop(settings, make_policy(), judge)
    assert len(lines(settings.run_dir)) == stops
    assert held_out.is_over(stops) == (stops < 10)
    made = judge.asked_heldout
    if stops < 10:
        last = DURING.format(stops)
        assert (settings.run_dir / AFTER).read_bytes() == (settings.run_dir / last).read_bytes()
        assert made == 1 + stops // 2
    assert run_loop(settings, make_policy(), judge).is_over(stops) == (stops < 10)
    assert len(lines(settings.run_dir)) == stops, "the same command does not go on"


def test_a_lost_service_resumes_with_the_evaluation(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings, judge = tiny_settings(**EVALUATED), Scores()
    judge.unavailable_at = 2
    with pytest.raises(RewardServiceUnavailable):
        run_loop(settings, make_policy(), judge)
    assert len(lines(settings.run_dir)) == 4
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == ["step-000004"]
    judge.unavailable_at = 10**6
    run_loop(settings, make_policy(), judge)
    assert [heldout is not None for heldout in heldout_of(settings)] == [True, False, True, False, True, False]


def test_stale_evaluations_are_removed(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """Those of steps that are trained again, such as after the checkpoints were removed."""
    settings, judge = tiny_settings(**EVALUATED), Scores()
    held_out = HeldOut(settings, judge, print)
    policy = make_policy()
    held_out.before(policy)
    for step in (2, 4):
        assert not held_out.ends_run(at(step, settings, policy), Clock())
    held_out.after(policy, 4)
    assert judge.asked_heldout == 3
    resumed = HeldOut(settings, judge, print)
    assert resumed.means(4) is not None
    resumed.ends_run(at(3, settings, policy), Clock())
    assert names(settings.run_dir) == ["before", "before.json", "step-000002", "step-000002.json"]
    assert (resumed.means(4), resumed.means(2) is None) == (None, False)
    resumed.ends_run(at(4, settings, policy), Clock())
    assert judge.asked_heldout == 4


def test_averaged_weights_are_evaluated(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings, policy = tiny_settings(**EVALUATED, OPTIMIZER__EMA="0.9"), make_policy()
    held_out = HeldOut(settings, Scores(), print)
    held_out.before(policy)
    state = at(2, settings, policy)  # the average starts here
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.mul_(0.5)
    changed = weights(policy)
    held_out.ends_run(state, Clock())
    before, during = (load_evaluation(settings.run_dir / name) for name in (BEFORE, DURING.format(2)))
    assert during.rows == before.rows
    assert equal(weights(policy), changed), "training goes on with its own weights"
    held_out.ends_run(at(4, tiny_settings(**EVALUATED), policy), Clock())
    assert load_evaluation(settings.run_dir / DURING.format(4)).rows != before.rows


def test_other_scorers_evaluate_again(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    judge = Scores()
    HeldOut(tiny_settings(**EVALUATED), judge, print).before(make_policy())
    HeldOut(tiny_settings(**EVALUATED), judge, print).before(make_policy())
    assert judge.asked_heldout == 1
    for changed in ({"EVALUATE__SCORERS": "{ hps = 2.0, iqa = -1.0, x = 0.0 }"}, {"EVALUATE__PROMPTS": "4"}):
        settings = tiny_settings(**{**EVALUATED, **changed})
        assert HeldOut(settings, judge, print).means(0) is None


def test_reward_hacking_is_logged(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings, said = tiny_settings(**EVALUATED), list[str]()
    policy, judge = make_policy(), Scores()
    held_out = HeldOut(settings, judge, said.append)
    held_out.before(policy)
    judge.reward, judge.heldout = (lambda item: 1.0 + brightness(item)), [-3.0]
    held_out.ends_run(at(2, settings, policy), Clock())
    assert len(said) == 1
    assert said[0].startswith("step 2: Reward hacking is likely")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"EVALUATE__PATIENCE": "2"}, "patience 2 counts evaluations during training, but every is 0"),
        ({"EVALUATE__SCORERS": "{ hps = 0.0 }"}, "every weight of hps is 0"),
        (
            {"EVALUATE__SCORERS": '["hps", "ber"]', "REWARDS__SCORERS": "{ ber = 1.0, hps = 0.0 }"},
            r"evaluate.scorers names ber, which \[trainer.rewards\] trains on",
        ),
    ],
)
def test_contradictory_settings_are_refused(
    tiny_settings: MakeSettings, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_settings(**overrides)


def test_a_list_of_scorers_weighs_alike(tiny_settings: MakeSettings) -> None:
    assert tiny_settings(EVALUATE__SCORERS='["hps", "iqa"]').evaluate.scorers == {"hps": 1.0, "iqa": 1.0}
