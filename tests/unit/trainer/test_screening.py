"""Screens by the reward's own terms and by both tails, on a tiny Show-o."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from synod.contracts import ScoreItem
from synod.errors import SettingsError
from tests.unit.trainer.loops import MakePolicy, MakeSettings, draw, lines, run_loop, same_images, tasks
from tests.unit.trainer.reward_services import Judge, answered, brightness
from trainer.groups import from_document, to_document
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import END
from trainer.sampling import reward_items
from trainer.types import Reward, RewardSpec

THREE = {"PROMPTS_PER_STEP": "3", "DATA__GENEVAL_SHARE": "0.34"}  # a visual, a textual and a GenEval task
KNOWN = {**THREE, "REWARDS__SURROGATE": '"known"', "SCREEN__THRESHOLD": "quantile"}
PREDICTED = {**THREE, "REWARDS__SURROGATE": '"known+predicted"'}
BOTH_TAILS = {
    **THREE,
    "SCREEN__SELECT": "best_and_worst",
    "SCREEN__THRESHOLD": "none",
    "SCREEN__GROUP_SIZE": "3",
    "SCREEN__MAX_PREVIEWS": "7",
    "LOSS__BASELINE": "population",
}


def length(item: ScoreItem) -> float:
    """A score that reads only the answer."""
    assert item.reasoning is not None
    return len(item.reasoning.text) / 100


class Recorded(Judge):
    """Records what previews were to be scored by; those without an image get the length of their answer."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[tuple[RewardSpec | None, tuple[ScoreItem, ...]]] = []

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        with self._lock:
            self.by.append((reward, tuple(items)))
        return answered([Reward(length(item) if item.image is None else brightness(item)) for item in items])


@pytest.fixture
def talking(policy: ShowO) -> ShowO:
    policy.phi.lm_head.bias.data[policy.vocab.id(END)] -= 4.0  # so that answers differ
    return policy


def test_known_terms_screen_before_images_are_begun(
    talking: ShowO, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, judge = tiny_settings(**KNOWN), Recorded()
    decoded, images = [0], talking.images
    monkeypatch.setattr(talking, "images", lambda s: (decoded.__setitem__(0, decoded[0] + len(s)), images(s))[1])
    groups, _ = draw(talking, judge, settings, threshold=0.12)
    assert settings.screening_step == 0
    for group in groups:
        previews = group.previews
        assert previews.images == ()
        assert {rollout.image.step for rollout in previews.rollouts} == {0}
        assert {rollout.image.step for rollout in group.rollouts} == {4}
        if previews.task.query is None:  # nothing is known, so nothing is screened
            assert (previews.scores, previews.threshold) == ((None,) * 4, None)
            assert previews.screened.indices == (0, 1, 2, 3)
        else:
            assert previews.scores == tuple(len(rollout.answer) / 100 for rollout in previews.rollouts)
            assert previews.threshold == 0.12
    assert decoded[0] == sum(len(group.rollouts) for group in groups)  # of kept rollouts alone
    asked = [item for _, items in judge.by for item in items]
    assert len(asked) == sum(len(g.previews.scores) for g in groups if g.previews.task.query is not None)
    assert {item.image for item in asked} == {None}


def test_a_screen_before_the_images_changes_no_rollout(talking: ShowO, tiny_settings: MakeSettings) -> None:
    """A rollout follows from its seed, whether it was screened before its image, at a step of it, or not at all."""
    found = []
    for options in (KNOWN, PREDICTED, {**THREE, "SCREEN__THRESHOLD": "none"}):
        groups, _ = draw(talking, Recorded(), tiny_settings(**options))
        found.append(
            [(rollout.index, image) for g in groups for rollout, image in zip(g.rollouts, g.images, strict=True)]
        )
    first, *others = found
    for other in others:
        assert [index for index, _ in other] == [index for index, _ in first]
        assert same_images([image for _, image in other], [image for _, image in first])


def test_previews_are_scored_by_the_reward_of_their_task(talking: ShowO, tiny_settings: MakeSettings) -> None:
    """The items have the answer, the references and GenEval's metadata."""
    settings, judge = tiny_settings(**PREDICTED), Recorded()
    groups, _ = draw(talking, judge, settings)
    assert len(judge.by) == len(groups) == 3
    for group, (reward, items) in zip(groups, judge.by, strict=True):
        previews = group.previews
        assert reward == previews.task.reward
        expected = reward_items(previews.task, previews.rollouts, previews.images)
        assert same_images([item.image for item in items], previews.images)
        assert [item.reasoning for item in items] == [item.reasoning for item in expected]
        assert {len(item.references) for item in items} == {0 if previews.task.profile is None else 2}
        assert {item.geneval for item in items} == {previews.task.prompt.geneval}
        assert previews.step == 1


def test_both_tails_of_a_fixed_number_are_finished(policy: ShowO, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(**BOTH_TAILS)
    scores = iter([0.5, 0.9, 0.1, 0.4, None, 0.8, 0.2] * 3)
    groups, _ = draw(policy, Judge(surrogate=lambda item: next(scores)), settings)
    for group in groups:
        assert group.previews.screened.drawn == 7
        assert [rollout.index for rollout in group.rollouts] == [1, 2, 5]
        assert not group.previews.capped


def test_the_step_of_a_screen_travels_between_ranks(talking: ShowO, tiny_settings: MakeSettings) -> None:
    for options in (KNOWN, PREDICTED):
        (group, *_), _ = draw(talking, Recorded(), tiny_settings(**options))
        found = from_document(group.previews.task, json.loads(json.dumps(to_document(group))))
        assert found.previews.step == group.previews.step
        assert found.previews.screened == group.previews.screened


@pytest.mark.parametrize("options", [KNOWN, PREDICTED, BOTH_TAILS], ids=["known", "predicted", "both tails"])
def test_a_run_with_each_screen(
    make_policy: MakePolicy, tiny_settings: MakeSettings, options: dict[str, str], world_dir: Path
) -> None:
    """Denoising steps are counted from where each group was screened."""
    settings = tiny_settings(**options, STEPS="2")
    run_loop(settings, make_policy, Recorded())
    for line in lines(settings.run_dir):
        step = settings.screening_step
        assert line["denoising_steps"] == line["previews"] * step + line["kept"] * (4 - step)
        assert line["denoising_steps_unscreened"] == line["previews"] * 4
    shown = [
        json.loads(text)["samples"].keys() for text in (settings.run_dir / "samples.jsonl").read_text().splitlines()
    ]
    assert all(("previews" in one) == (settings.screening_step > 0) for one in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**BOTH_TAILS, "SCREEN__THRESHOLD": "quantile"}, "select 'best_and_worst' chooses among all max_previews"),
        ({**BOTH_TAILS, "LOSS__BASELINE": "group"}, "give loss.baseline 'population'"),
        ({**BOTH_TAILS, "SCREEN__FINISHED": "4"}, "'best_and_worst' chooses the number; remove it"),
    ],
)
def test_rules_that_do_not_fit_are_refused(tiny_settings: MakeSettings, options: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tiny_settings(**options)
    assert message in str(caught.value)


def test_tasks_of_every_kind_are_drawn(tiny_settings: MakeSettings) -> None:
    assert {task.pathway for task in tasks(tiny_settings(**THREE))} == {"visual", "textual", "none"}
