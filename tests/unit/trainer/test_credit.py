"""Split credit: by hand, under permuted text scores, unbiased by enumeration, and in the gradient of an update."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.loops import NO_SLOPES, MakeSettings, draw, every_slope
from tests.unit.trainer.reward_services import Judge
from trainer import credit
from trainer.algorithms.advantage import Slope
from trainer.algorithms.aggregate import without_fixed
from trainer.algorithms.screen import ScreenResult
from trainer.credit import Slopes, update_reward_slopes
from trainer.groups import Previews, ScoredGroup, from_document, to_document
from trainer.optim import make_optimizer
from trainer.policy.show_o.policy import ShowO
from trainer.settings import LossSettings, ScreenSettings
from trainer.types import Modality, Prompt, Reward, RewardSpec, Task
from trainer.update import policy_update

ENSEMBLE = RewardSpec(ensemble="sync_r1")
WEIGHTS = {"tier": 0.5, "ber": 0.25, "der": -1.0}
SUM, GDPO = RewardSpec(WEIGHTS), RewardSpec(WEIGHTS, aggregation="gdpo")
FORMS = [
    (SUM, LossSettings()),
    (SUM, LossSettings(normalise="group_std")),
    (SUM, LossSettings(normalise="batch_std")),
    (SUM, LossSettings(baseline="population")),
    (GDPO, LossSettings()),
]
EVERY_FORM = pytest.mark.parametrize(
    ("spec", "settings"), FORMS, ids=["sum", "group_std", "batch_std", "population", "gdpo"]
)
SLOPES: dict[Modality, Slope] = {"text": Slope(2.0, 1.0, freedom=20.0), "image": Slope(0.5, 1.0, freedom=20.0)}
KNOWN = every_slope(SLOPES)


def modality_advantages(
    groups: Sequence[ScoredGroup], slopes: Slopes, settings: LossSettings
) -> dict[Modality, list[torch.Tensor]]:
    """The advantages of all rewarded rollouts."""
    found = credit.modality_advantages(groups, slopes, settings, ScreenSettings())
    return {modality: [one.advantage for one in credits] for modality, credits in found.items()}


def group(rewards: Sequence[Reward], spec: RewardSpec, scores: Sequence[float] | None = None) -> ScoredGroup:
    """A group whose previews are all kept; `scores` may have those of more previews."""
    size = len(rewards)
    surrogate = tuple(scores) if scores is not None else (0.5,) * size
    screened = ScreenResult(tuple(range(size)), size, len(surrogate), len(surrogate), is_full=True)
    task = Task("tag/textual", "textual", Prompt("a photo", "tag"), spec)
    return ScoredGroup(Previews(task, (), (), surrogate, screened, 0.0), (), (), tuple(rewards), ())


def scored(tier: float, ber: float, der: float) -> Reward:
    scores = {"tier": tier, "ber": ber, "der": der}
    return Reward(
        sum(WEIGHTS[name] * value for name, value in scores.items()), scores, fixed={"tier": WEIGHTS["tier"] * tier}
    )


def test_split_credit_by_hand() -> None:
    rewards = [Reward(0.75, fixed={"tier": 0.5}), Reward(0.5, fixed={"tier": 0.0}), Reward(None)]
    rewards.append(Reward(1.0, fixed={"tier": 0.25}))
    found = modality_advantages([group(rewards, ENSEMBLE)], NO_SLOPES, LossSettings())
    assert found["text"][0].tolist() == [0.0, -0.25, 0.25]  # 0.75, 0.5 and 1.0 around 0.75
    image = [0.25, 0.5, 0.75]
    assert found["image"][0].tolist() == [value - 0.5 for value in image]


def test_total_credit_gives_both_modalities_the_same() -> None:
    rewards = [Reward(0.75, fixed={"tier": 0.5}), Reward(0.5, fixed={"tier": 0.0})]
    found = modality_advantages([group(rewards, ENSEMBLE)], NO_SLOPES, LossSettings(credit="total"))
    assert found["text"][0].tolist() == found["image"][0].tolist() == [0.125, -0.125]


def test_the_population_baseline_of_each_modality_by_hand() -> None:
    """The kept previews score .6 on average, all drawn ones .5, so the shifts are -.1 times each slope."""
    rewards = [Reward(0.75, fixed={"tier": 0.5}), Reward(0.25, fixed={"tier": 0.25})]
    one = group(rewards, ENSEMBLE, scores=(0.4, 0.8, 0.3))
    found = modality_advantages([one], KNOWN, LossSettings(baseline="population"))
    assert found["text"][0].tolist() == pytest.approx([0.25 + 0.2, -0.25 + 0.2], abs=1e-6)
    assert found["image"][0].tolist() == pytest.approx([0.125 + 0.05, -0.125 + 0.05], abs=1e-6)
    after = update_reward_slopes(KNOWN, [one])
    expected = {
        ("text", "textual", 0): SLOPES["text"].update([0.4, 0.8], [0.75, 0.25]),
        ("image", "textual", 0): SLOPES["image"].update([0.4, 0.8], [0.25, 0.0]),
    }
    assert after == {**KNOWN, **expected}


def test_each_pathway_and_step_has_a_slope_of_its_own() -> None:
    """A score of 1 means a reward of 2 on one, 1 on the other; a screen that was not measured begins without one."""
    rewards = [Reward(0.75, fixed={}), Reward(0.25, fixed={})]
    one = group(rewards, ENSEMBLE, scores=(0.4, 0.8, 0.3))  # the kept ones score .1 above all
    visual = replace(one.previews, task=replace(one.previews.task, pathway="visual"))
    later = replace(one.previews, step=2)
    groups = [one, replace(one, previews=visual), replace(one, previews=later)]
    slopes = {("text", "textual", 0): Slope(2.0, 1.0, 20.0), ("text", "visual", 0): Slope(1.0, 1.0, 20.0)}
    found = modality_advantages(groups, slopes, LossSettings(baseline="population"))["text"]
    assert [a.tolist()[0] for a in found] == pytest.approx([0.25 + 0.2, 0.25 + 0.1, 0.25], abs=1e-6)
    after = update_reward_slopes({}, [*groups, one])
    first = Slope().update([0.4, 0.8], [0.75, 0.25])
    assert after["text", "visual", 0] == after["text", "textual", 2] == first
    assert after["text", "textual", 0] == first.update([0.4, 0.8], [0.75, 0.25])


def test_a_measured_group_gives_every_step_a_slope() -> None:
    """It is scored at all steps, so the first group after a move has a slope of all its finished rollouts."""
    rewards = [Reward(value, fixed={"tier": 0.25}) for value in (0.75, 0.25, 0.5)]
    one = group(rewards, ENSEMBLE)
    foretold = {0: (0.4, 0.8, 0.3), 2: (0.1, None, 0.5)}
    after = update_reward_slopes({}, [replace(one, previews=replace(one.previews, step=2, foretold=foretold))])
    assert after == {
        ("text", "textual", 0): Slope().update([0.4, 0.8, 0.3], [0.75, 0.25, 0.5]),
        ("text", "textual", 2): Slope().update([0.1, None, 0.5], [0.75, 0.25, 0.5]),
        ("image", "textual", 0): Slope().update([0.4, 0.8, 0.3], [0.5, 0.0, 0.25]),
        ("image", "textual", 2): Slope().update([0.1, None, 0.5], [0.5, 0.0, 0.25]),
    }


scores_of = st.lists(st.tuples(*[st.integers(-8, 8).map(lambda n: n / 8)] * 3), min_size=3, max_size=6)


@EVERY_FORM
@given(first=scores_of, second=scores_of, seed=st.integers(0, 9))
def test_image_advantages_ignore_permuted_text_scores(
    spec: RewardSpec, settings: LossSettings, first: list[tuple[float, ...]], second: list[tuple[float, ...]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups, permuted = [], []
    for scores in (first, second):
        order = rng.permutation(len(scores))
        groups.append(group([scored(*one) for one in scores], spec))
        permuted.append(group([scored(scores[j][0], *one[1:]) for j, one in zip(order, scores, strict=True)], spec))
    before, after = (modality_advantages(one, KNOWN, settings) for one in (groups, permuted))
    for a, b in zip(before["image"], after["image"], strict=True):
        assert torch.equal(a, b)


@EVERY_FORM
def test_text_advantages_are_those_of_the_whole_reward(spec: RewardSpec, settings: LossSettings) -> None:
    scores = [(1.0, 0.5, 0.25), (0.0, 0.75, 0.5), (0.25, 0.0, 1.0)]
    split = modality_advantages([group([scored(*one) for one in scores], spec)], KNOWN, settings)
    whole = settings.model_copy(update={"credit": "total"})
    total = modality_advantages([group([scored(*one) for one in scores], spec)], KNOWN, whole)
    assert torch.equal(split["text"][0], total["text"][0])
    assert not torch.allclose(split["image"][0], split["text"][0], atol=1e-3)


@EVERY_FORM
def test_a_reward_of_text_alone_gives_images_no_advantage(spec: RewardSpec, settings: LossSettings) -> None:
    """Neither has one of three terms whose sum rounds: .1 + .2 + .3 is .6000000000000001, not .6."""
    one = [replace(scored(tier, 0.0, 0.0), components={"tier": tier}) for tier in (1.0, 0.0, 0.5)]
    weights, three = {"tier": 0.1, "bleu": 0.2, "format": 0.3}, list[Reward]()
    for x in (1.0, 0.0, 0.5):
        fixed = {name: weight * x for name, weight in weights.items()}
        three.append(Reward(0.1 * x + 0.2 * x + 0.3 * x, dict.fromkeys(weights, x), fixed=fixed))
    assert three[0].value != math.fsum(weights.values())
    for rewards, scorers in ((one, {"tier": 0.5}), (three, weights)):
        only = replace(spec, scorers=scorers)
        found = modality_advantages([group(rewards, only)], NO_SLOPES, settings)
        assert found["image"][0].tolist() == [0.0] * 3
        assert bool(found["text"][0].abs().max() > 0.1)


@pytest.mark.parametrize("spec", [ENSEMBLE, SUM, GDPO])
def test_an_unknown_term_falls_back_to_the_total_of_its_group(spec: RewardSpec) -> None:
    rewards = [scored(1.0, 0.5, 0.5), replace(scored(0.0, 0.25, 0.5), fixed=None), Reward(None)]
    assert without_fixed(rewards, spec) == (rewards, spec)
    rewards[1] = Reward(None)  # a missing reward has no terms to know
    assert without_fixed(rewards, spec)[0][0].value == pytest.approx(0.25 * 0.5 - 0.5)


def test_without_fixed_terms_nothing_changes() -> None:
    rewards = [replace(scored(1.0, 0.5, 0.5), fixed={}), replace(scored(0.0, 0.25, 0.5), fixed={})]
    assert without_fixed(rewards, GDPO) == (rewards, GDPO)


def test_split_credit_is_exact_and_has_less_noise() -> None:
    """Enumerate two rollouts: an answer (right or wrong) decides a text term of 1, and a code of two that of the image.

    The code's probability depends on the answer, so the image's gradient is not trivially 0.
    """
    right, logit = 0.4, (0.3, -0.5)  # P(answer = 1); the image's logit after each answer
    one = [1 / (1 + np.exp(-x)) for x in logit]  # P(code = 1 | answer)
    mean, square = {"split": np.zeros(2), "total": np.zeros(2)}, {"split": 0.0, "total": 0.0}
    for outcome in itertools.product((0, 1), repeat=4):
        answers, codes = outcome[:2], outcome[2:]
        p = np.prod([right if a else 1 - right for a in answers])
        p *= np.prod([one[a] if c else 1 - one[a] for a, c in zip(answers, codes, strict=True)])
        rewards = [Reward(a + 0.2 * c, fixed={"tier": float(a)}) for a, c in zip(answers, codes, strict=True)]
        for form in ("split", "total"):
            settings = LossSettings.model_validate({"credit": form})
            (advantage,) = modality_advantages([group(rewards, ENSEMBLE)], NO_SLOPES, settings)["image"]
            gradient = np.zeros(2)  # of the two logits
            for a, c, weight in zip(answers, codes, advantage.double().tolist(), strict=True):
                gradient[a] += weight * (c - one[a])
            mean[form] += p * gradient
            square[form] += float(p * gradient @ gradient)
    assert np.abs(mean["split"]).min() > 1e-3
    assert mean["split"] == pytest.approx(mean["total"], abs=1e-8)
    assert square["split"] < 0.2 * square["total"]


def test_fixed_terms_travel_between_ranks() -> None:
    """Also an empty and an unknown one, through JSON."""
    rewards = [scored(1.0, 0.5, 0.5), replace(scored(0.0, 0.25, 0.5), fixed=None), replace(scored(0, 0, 0), fixed={})]
    one = group(rewards, SUM)
    document = json.loads(json.dumps(to_document(one)))
    assert from_document(one.previews.task, document).rewards == one.rewards


def test_the_image_gradient_of_an_update_ignores_text_scores(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """With the weight of texts at 0 the update is the images' alone."""
    still = {"OPTIMIZER__LR": "1e-30", "LOSS__TEXT__ALPHA": "0", "LOSS__TEXT__BETA": "0", "LOSS__IMAGE__BETA": "0"}
    settings = tiny_settings(**still)
    (drawn,), _ = draw(policy, Judge(), settings)
    tiers, image = [1.0, 0.0, 0.5, 0.25], [0.125, 0.5, 0.25, 0.75]
    gradients = []
    for text in (tiers, tiers[::-1]):
        for form in ("split", "total"):
            rewards = [Reward(a + b, fixed={"tier": a}) for a, b in zip(text, image, strict=True)]
            loss = settings.loss.model_copy(update={"credit": form})
            changed = settings.model_copy(update={"loss": loss})
            scored_group = replace(drawn, rewards=tuple(rewards))
            policy_update(policy, make_optimizer(policy, changed), [scored_group], NO_SLOPES, changed, 0)
            gradients.append(torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]))
    split, total, split_permuted, total_permuted = gradients
    assert torch.equal(split, split_permuted)
    assert float((total - total_permuted).norm()) > 0.1 * float(total.norm())
    assert float((split - total).norm()) > 0.1 * float(total.norm())


# -- the extremes of finished rollouts --------------------------------------------------------------------------------

THREE_OF_SIX = ScreenSettings(group_size=3, threshold="none", select="extremes")
TWO_OF_FIVE = ScreenSettings(group_size=2, threshold="none", select="extremes", finished=5)


def chosen(rewards: Sequence[Reward], screen: ScreenSettings) -> dict[Modality, tuple[tuple[int, ...], list[float]]]:
    """The places and advantages of one group."""
    found = credit.modality_advantages([group(rewards, ENSEMBLE)], NO_SLOPES, LossSettings(), screen)
    return {modality: (one.places, one.advantage.tolist()) for modality, (one,) in found.items()}


def test_the_extremes_by_hand() -> None:
    """The mean of all six is .5; of two at the same distance the first is taken."""
    rewards = [Reward(value) for value in (0.5, 1.0, 0.25, 0.125, 0.75, 0.375)]
    assert chosen(rewards, THREE_OF_SIX)["image"] == ((1, 2, 3), [0.5, -0.25, -0.375])


def test_missing_rewards_are_not_extreme() -> None:
    """They are left out of mean and choice; with fewer rewards than the group's size all are taken."""
    rewards = [Reward(value) for value in (None, 1.0, 0.5, None, 0.0)]
    assert chosen(rewards, TWO_OF_FIVE)["text"] == ((1, 4), [0.5, -0.5])
    assert chosen(rewards[2:], THREE_OF_SIX)["text"] == ((0, 2), [0.25, -0.25])


def test_each_modality_has_extremes_of_its_own() -> None:
    """The text term decides which answers are extreme, the rest which images."""
    text, image = [1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.75, 0.25]
    found = chosen([Reward(a + b, fixed={"tier": a}) for a, b in zip(text, image, strict=True)], TWO_OF_FIVE)
    assert (found["text"][0], found["image"][0]) == ((0, 1), (2, 3))


@pytest.mark.parametrize(("finished", "expected"), [(9, 1.0), (18, 1.94)])
def test_the_power_of_extremes_of_gaussian_rewards(finished: int, expected: float) -> None:
    """(sum E[a R])^2 / sum E[a^2] of nine, over that of a plain group of nine, which is 8; the error is .01."""
    screen = ScreenSettings(group_size=9, threshold="none", select="extremes", finished=finished)
    reward_PG = np.random.default_rng(0).standard_normal((1500, finished))
    groups = [group([Reward(value) for value in row], ENSEMBLE) for row in reward_PG.tolist()]
    signal = noise = 0.0
    for row, one in zip(
        reward_PG, credit.modality_advantages(groups, NO_SLOPES, LossSettings(), screen)["image"], strict=True
    ):
        advantage = one.advantage.double().numpy()
        signal, noise = signal + float(advantage @ row[list(one.places)]), noise + float(advantage @ advantage)
    assert signal**2 / noise / len(groups) / 8 == pytest.approx(expected, abs=0.04)


def test_an_update_of_extremes_is_that_of_their_advantages(policy: ShowO, tiny_settings: MakeSettings) -> None:
    """Six images are finished; the update equals that of a group of the two extremes with these advantages."""
    no_kl = {"LOSS__TEXT__BETA": "0", "LOSS__IMAGE__BETA": "0", "OPTIMIZER__LR": "1e-30", "SCREEN__GROUP_SIZE": "2"}
    extremes = {"SCREEN__SELECT": "extremes", "SCREEN__THRESHOLD": "none", "SCREEN__FINISHED": "6"}
    settings, plain = tiny_settings(**no_kl, **extremes), tiny_settings(**no_kl)
    (drawn,), _ = draw(policy, Judge(), settings)
    assert len(drawn.rollouts) == len(drawn.images) == 6
    rewards = tuple(Reward(value) for value in (0.5, 0.5, 1.0, 0.5, 0.0, 0.5))
    few = replace(drawn, rollouts=(drawn.rollouts[2], drawn.rollouts[4]), rewards=(Reward(0.5), Reward(-0.5)))
    found = []
    for one, own in ((replace(drawn, rewards=rewards), settings), (few, plain)):
        policy_update(policy, make_optimizer(policy, own), [one], NO_SLOPES, own, 0)
        found.append(torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]))
    assert torch.equal(*found)
    assert bool(found[0].abs().max() > 0)
