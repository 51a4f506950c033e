"""The update against eq. 9 term by term, missing rewards, and a failing step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synod.contracts import ScoreFailure
from tests.unit.trainer.loops import MakePolicy, MakeSettings, draw, equal, every_slope, reference, weights
from tests.unit.trainer.reward_services import Judge
from trainer.algorithms.advantage import Slope
from trainer.credit import update_reward_slopes
from trainer.errors import NonFinite
from trainer.groups import ScoredGroup
from trainer.optim import make_optimizer
from trainer.policy.show_o.policy import ShowO
from trainer.settings import TrainerSettings
from trainer.types import MODALITIES, Reward, RewardSpec
from trainer.update import Update, policy_update

NO_KL = {"LOSS__TEXT__BETA": "0", "LOSS__IMAGE__BETA": "0"}
STILL = {"OPTIMIZER__LR": "1e-30"}  # no step
LOST = Reward(None, failure=ScoreFailure("scorer_failed", "planted"))
TWO = {"PROMPTS_PER_STEP": "2", "SCREEN__GROUP_SIZE": "3"}  # a visual and a textual group
SUM = RewardSpec(scorers={"a": 1.0})
KNOWN = Slope(xy=-1.5, xx=2.0, freedom=20.0)


@pytest.fixture(autouse=True)
def unclipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the gradient unclipped."""
    monkeypatch.setattr("trainer.update.MAX_GRAD_NORM", 1e30)


def given(*values: float | None) -> list[Reward]:
    return [LOST if value is None else Reward(value) for value in values]


def update(
    policy: ShowO,
    settings: TrainerSettings,
    groups: Sequence[ScoredGroup],
    rewards: Sequence[Sequence[Reward]],
    *,
    ref: ShowO | None = None,
    slope: Slope = Slope(),  # noqa: B008 - frozen
    optimizer: torch.optim.Optimizer | None = None,
    step: int = 0,
) -> Update:
    optimizer = optimizer or make_optimizer(policy, settings)
    policy._reference = None if ref is None else ref.module
    scored = [replace(group, rewards=tuple(found)) for group, found in zip(groups, rewards, strict=True)]
    return policy_update(policy, optimizer, scored, every_slope(dict.fromkeys(MODALITIES, slope)), settings, step)


def gradient(policy: ShowO) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.module.parameters()]
    return torch.cat([grad.flatten() for grad in grads])


def without(group: ScoredGroup, place: int) -> ScoredGroup:
    """The group as if that rollout had not been kept."""
    left = [i for i in range(len(group.rollouts)) if i != place]
    kept = replace(group.previews.screened, indices=tuple(group.previews.screened.indices[i] for i in left))
    return replace(
        group,
        previews=replace(group.previews, screened=kept),
        rollouts=tuple(group.rollouts[i] for i in left),
        images=tuple(group.images[i] for i in left),
    )


# -- eq. 9 ------------------------------------------------------------------------------------------------------------


def eq9(
    policy: ShowO,
    ref: ShowO,
    groups: Sequence[ScoredGroup],
    rewards: Sequence[Sequence[float | None]],
    *,
    alpha: dict[str, float],
    everywhere: bool = False,
    slope: float = 0.0,
    steps: Sequence[int] = range(4),
) -> Tensor:
    """Eq. 9 negated, one rollout, step and position at a time; the mean over groups with two rewards or more."""
    used = [(g, r) for g, r in zip(groups, rewards, strict=True) if sum(value is not None for value in r) >= 2]
    total = torch.zeros((), dtype=torch.float64)
    for group, found in used:
        scored = [(i, value) for i, value in enumerate(found) if value is not None]
        scores = group.previews.scores
        drawn = [score for score in scores if score is not None]
        kept = [score for i, _ in scored if (score := scores[group.previews.screened.indices[i]]) is not None]
        baseline = sum(value for _, value in scored) / len(scored)
        if slope:
            baseline -= slope * (sum(kept) / len(kept) - sum(drawn) / len(drawn))
        for i, value in scored:
            rollout = group.rollouts[i]
            for segment in rollout.segments:
                name = segment.kind
                for t in steps if name == "image" else [0]:
                    new, old, mask = policy.logprobs([segment], t)
                    with torch.no_grad():
                        far = ref.logprobs([segment], t)[0]
                    for j in range(new.shape[1]):
                        if bool(mask[0, j]) or (everywhere and name == "image"):
                            term = _term(new[0, j], float(old[0, j]), float(far[0, j]), value - baseline)
                            total = total + alpha[name] * term / len(scored) / len(used)
    return -total


def _term(new: Tensor, old: float, far: float, advantage: float) -> Tensor:
    ratio, d = torch.exp(new - old), far - new
    held, plain = min(max(ratio.item(), 0.8), 1.2), ratio * advantage
    gain = plain if plain.item() <= held * advantage else torch.tensor(held * advantage, dtype=torch.float64)
    return gain - 0.5 * (torch.exp(d) - d - 1)


Exact = Callable[[dict[str, str]], tuple[ShowO, ShowO, TrainerSettings, list[ScoredGroup]]]


@pytest.fixture
def exact(make_policy: MakePolicy, tiny_settings: MakeSettings) -> Exact:
    """Groups drawn by the reference, and a policy that differs from it, both converted to float64."""

    def make(options: dict[str, str]) -> tuple[ShowO, ShowO, TrainerSettings, list[ScoredGroup]]:
        settings = tiny_settings(**STILL, LOSS__TEXT__BETA="0.5", LOSS__IMAGE__BETA="0.5", **options)
        positions = {"positions": settings.policy.positions}
        policy, ref = make_policy(**positions), make_policy(**positions)
        groups, _ = draw(ref, Judge(), settings)
        generator = torch.Generator().manual_seed(3)
        for parameter in policy.module.parameters():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
        for one in (policy, ref):
            one.module.double()
        return policy, ref, settings, groups

    return make


PER_MODALITY = {"text": 0.4 / 4, "image": 0.6 / (4 * 16)}


@pytest.mark.parametrize(
    ("options", "alpha", "more"),
    [
        pytest.param({}, PER_MODALITY, {}, id="defaults"),
        pytest.param(
            {"LOSS__SCALE": "paper_sum", "POLICY__POSITIONS": "all"},
            {"text": 0.4, "image": 0.6},
            {"everywhere": True},
            id="all positions, the paper's sum",
        ),
        pytest.param(
            {"POLICY__POSITIONS": "committed"}, {**PER_MODALITY, "image": 0.6 / 16}, {}, id="committed positions"
        ),
        pytest.param({"LOSS__BASELINE": "population"}, PER_MODALITY, {"slope": -0.75}, id="population baseline"),
    ],
)
def test_the_gradient_is_that_of_equation_9(
    exact: Exact, options: dict[str, str], alpha: dict[str, float], more: dict[str, Any]
) -> None:
    """Two groups, a missing reward, ratios on both sides of the clip, and KL, in float64."""
    policy, ref, settings, groups = exact({**TWO, **options})
    values = [(0.75, 0.25, 0.5), (None, 0.125, 1.0)]
    plain = eq9(policy, ref, groups, values, alpha=alpha, **more)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(plain, list(policy.module.parameters()))])
    found = update(policy, settings, groups, [given(*v) for v in values], ref=ref, slope=KNOWN)
    assert sum(found.losses.values()) == pytest.approx(plain.item(), rel=1e-6)
    assert float((gradient(policy) - expected).abs().max()) < 1e-6 * float(expected.abs().max())
    assert found.grad_norm == pytest.approx(float(expected.norm()), rel=1e-6)
    for stats in found.stats.values():  # or the test would prove little
        assert 0 < (stats.clip_fraction or 0) < 1
        assert stats.low < 0.8 < 1.2 < stats.high
        assert (stats.kl or 0) > 1e-3
    each = {"masked": 16 + 14 + 11 + 6, "committed": 16, "all": 4 * 16}
    assert found.stats["image"].decisions == 5 * each[settings.policy.positions]


def test_a_fraction_of_steps_is_unbiased(exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the six equally likely choices of two of four steps."""
    policy, ref, settings, groups = exact({"DATA__GENEVAL_SHARE": "1.0", "LOSS__LOSS_STEP_FRACTION": "0.5"})
    values = (0.75, 0.25, 0.5, 0.5)

    @dataclass
    class Scripted:
        steps: tuple[int, ...]

        def choice(self, total: int, count: int, replace: bool) -> Any:
            assert (total, count, replace) == (4, 2, False)
            return np.array(self.steps)

    grads = []
    for chosen in itertools.combinations(range(4), 2):
        with monkeypatch.context() as patch:
            patch.setattr("numpy.random.default_rng", lambda seed, chosen=chosen: Scripted(chosen))
            update(policy, settings, groups, [given(*values)], ref=ref)
        grads.append(gradient(policy))
    whole = eq9(policy, ref, groups, [values], alpha=PER_MODALITY)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(whole, list(policy.module.parameters()))])
    assert float((torch.stack(grads).mean(0) - expected).abs().max()) < 1e-6 * float(expected.abs().max())
    assert float((grads[0] - expected).abs().max()) > 0.1 * float(expected.abs().max())


def test_the_steps_follow_from_seed_step_and_group(
    policy: ShowO, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"LOSS__LOSS_STEP_FRACTION": "0.5", "SCREEN__GROUP_SIZE": "2"}
    settings = tiny_settings(**STILL, **NO_KL, **few, DATA__GENEVAL_SHARE="1.0")
    groups, rewards = draw(policy, Judge(), settings)
    asked: list[int] = []
    terms = policy.terms

    def watched(segments: Any, step: int, **options: Any) -> Any:
        asked.append(step)
        return terms(segments, step, **options)

    monkeypatch.setattr(policy, "terms", watched)
    for step in (*range(12), 0):
        update(policy, settings, groups, rewards, step=step)
    chosen = [tuple(asked[i : i + 2]) for i in range(0, len(asked), 2)]
    assert len(chosen) == 13
    assert chosen[0] == chosen[-1]
    assert all(first < second for first, second in chosen)
    assert len(set(chosen)) >= 4
    assert set(asked) == {0, 1, 2, 3}
    asked.clear()
    update(policy, settings, groups * 2, rewards * 2)
    assert asked[:2] == list(chosen[0]), "a group has its own choice"


# -- behaviour of the update ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "limits"),
    [
        pytest.param("4", {"image": 1e-6, "text": 1e-5}, id="drawn in the batches of the update"),
        pytest.param("3", {"image": 5e-5, "text": 5e-5}, id="in other batches, which round otherwise"),
    ],
)
def test_ratios_are_1_at_the_update(
    make_policy: MakePolicy, tiny_settings: MakeSettings, chunk: str, limits: dict[Any, float]
) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="2", REWARD_BATCH_SIZE=chunk)
    policy = make_policy()
    groups, rewards = draw(policy, Judge(), settings)
    found = update(policy, settings, groups, rewards, ref=reference(make_policy))
    for modality, limit in limits.items():
        stats = found.stats[modality]
        assert stats.decisions >= 6
        assert max(abs(stats.low - 1), abs(stats.high - 1)) < limit
        assert stats.clip_fraction == 0
        assert stats.kl == pytest.approx(0, abs=limit**2)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_micro_batch_has_the_same_gradient(exact: Exact, size: int) -> None:
    policy, ref, settings, groups = exact(TWO)
    rewards = [given(0.75, 0.25, 0.5), given(None, 0.125, 1.0)]
    whole = update(policy, settings, groups, rewards, ref=ref)
    expected = gradient(policy).clone()
    loss = settings.loss.model_copy(update={"micro_batch": size})
    found = update(policy, settings.model_copy(update={"loss": loss}), groups, rewards, ref=ref)
    assert float((gradient(policy) - expected).abs().max()) < 1e-6 * float(expected.abs().max())
    assert found.losses == pytest.approx(whole.losses, rel=1e-6)
    assert {kind: stats.decisions for kind, stats in found.stats.items()} == {
        kind: stats.decisions for kind, stats in whole.stats.items()
    }


def test_rewards_of_several_scorers_are_aggregated(exact: Exact) -> None:
    """GDPO by hand: each scorer over its group, weighted, over the standard deviation of the step."""
    policy, ref, settings, groups = exact({"PROMPTS_PER_STEP": "2", "LOSS__TEXT__ALPHA": "0"})
    spec = RewardSpec(scorers={"a": 1.0, "b": 0.5}, aggregation="gdpo")
    groups = [replace(g, previews=replace(g.previews, task=replace(g.previews.task, reward=spec))) for g in groups]
    scores = [
        ((1.0, 200.0), (3.0, 0.0), (2.0, 100.0), (2.5, 50.0)),
        ((0.0, 5.0), (0.0, 9.0), (0.0, 4.0), (0.0, 7.0)),
    ]
    rewards = [[Reward(a + 0.5 * b, {"a": a, "b": b}) for a, b in group] for group in scores]
    sums = []
    for group in scores:
        columns = [np.array(column) for column in zip(*group, strict=True)]
        normal = [(c - c.mean()) / c.std(ddof=1) if c.std() else 0 * c for c in columns]
        sums.append(normal[0] + 0.5 * normal[1])
    spread = np.concatenate(sums).std(ddof=1)
    expected = [torch.tensor(one / spread, dtype=torch.float32) for one in sums]
    update(policy, settings, groups, rewards, ref=ref)
    found = gradient(policy).clone()
    plain = [replace(g, previews=replace(g.previews, task=replace(g.previews.task, reward=SUM))) for g in groups]
    update(policy, settings, plain, [[Reward(float(v)) for v in one] for one in expected], ref=ref)
    assert float((gradient(policy) - found).abs().max()) < 1e-5 * float(found.abs().max())


def test_groups_without_spread_are_counted(policy: ShowO, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="2", **NO_KL)
    groups, _ = draw(policy, Judge(), settings)
    found = update(policy, settings, groups, [given(0.5, 0.5, None, 0.5), given(0.5, 0.5, 0.5, 0.6)])
    assert (found.flat, found.skipped) == (1, 0)


def test_a_missing_reward_equals_a_group_without_it(
    policy: ShowO, make_policy: MakePolicy, tiny_settings: MakeSettings
) -> None:
    """Bit for bit the update of a group without the rollout, and not that of a reward of 0."""
    settings = tiny_settings(PROMPTS_PER_STEP="2", LOSS__BASELINE="population")
    groups, _ = draw(policy, Judge(), settings)
    other = given(0.1, 0.2, 0.9, 0.3)
    ref, moved = reference(make_policy), []
    for first, rewards in (
        (groups[0], given(0.5, None, 0.25, 1.0)),
        (without(groups[0], 1), given(0.5, 0.25, 1.0)),
        (groups[0], given(0.5, 0.0, 0.25, 1.0)),
    ):
        own = make_policy()
        found = update(own, settings, [first, groups[1]], [rewards, other], ref=ref, slope=KNOWN)
        moved.append((weights(own), found))
    (lost, lost_update), (absent, absent_update), (zero, _) = moved
    assert equal(lost, absent)
    assert lost_update == absent_update
    assert not equal(lost, zero)
    assert not equal(lost, weights(policy))


GDPO = {"REWARDS__SCORERS": "{ a = 1.0, b = -2.0 }", "REWARDS__AGGREGATION": '"gdpo"'}


@pytest.mark.parametrize("options", [{"LOSS__NORMALISE": "group_std"}, {"LOSS__NORMALISE": "batch_std"}, GDPO])
def test_normalised_rewards_act_as_their_advantages(
    make_policy: MakePolicy, tiny_settings: MakeSettings, options: dict[str, str]
) -> None:
    """Rewards with a mean of 0 are their own advantages, so both updates are equal; worked out here in numpy."""
    scores = np.array(
        [[[0.5, 9], [0.25, 8], [1.0, 7], [0.75, 9], [0.5, 8]], [[0, 7], [0.5, 8], [9, 9], [1, 8], [0.25, 7]]]
    )
    given_BG = [[True] * 5, [True, True, False, True, True]]
    raw = [[Reward(float(a - 2 * b), {"a": float(a), "b": float(b)}) for a, b in group] for group in scores]
    used = [group[valid] for group, valid in zip(scores, given_BG, strict=True)]
    sums = [group @ [1, -2] for group in used]
    if options is GDPO:
        sums = [((group - group.mean(0)) / group.std(0, ddof=1)) @ [1, -2] for group in used]
    divisors = [np.concatenate(sums).std(ddof=1)] * 2
    if options == {"LOSS__NORMALISE": "group_std"}:
        divisors = [one.std(ddof=1) for one in sums]
    advantages = [((one - one.mean()) / divisor).tolist() for one, divisor in zip(sums, divisors, strict=True)]
    one, other = make_policy(), make_policy()
    five = {"PROMPTS_PER_STEP": "2", "SCREEN__GROUP_SIZE": "5", **STILL, **NO_KL}
    plain, settings = tiny_settings(**five), tiny_settings(**five, **options)
    expected_rewards = [given(*advantages[0]), given(*advantages[1][:2], None, *advantages[1][2:])]
    expected = update(one, plain, draw(one, Judge(), plain)[0], expected_rewards)
    raw[1][2] = LOST
    found = update(other, settings, draw(other, Judge(), settings)[0], raw)
    assert found.advantage_abs == pytest.approx(expected.advantage_abs, rel=1e-5)
    assert float((gradient(other) - gradient(one)).abs().max()) < 1e-5 * float(gradient(one).abs().max())
    assert found.flat == expected.flat == 0


def test_a_flat_group_has_no_normalised_gradient(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="2", SCREEN__GROUP_SIZE="5", LOSS__NORMALISE="group_std", **NO_KL)
    policy = make_policy()
    groups, _ = draw(policy, Judge(), settings)
    flat, one = given(0.1, 0.1, None, 0.1, 0.1), given(0.5, None, None, None, None)
    found = update(policy, settings, groups, [flat, one])
    assert (found.flat, found.skipped, found.grad_norm) == (1, 1, 0)
    assert found.advantage_abs == {"text": 0, "image": 0}


def test_groups_without_text_have_no_advantage_of_text(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    """As GenEval's, which are drawn as they are."""
    settings = tiny_settings(**TWO, **NO_KL, **STILL, LOSS__CREDIT="total")
    policy = make_policy()
    (first, second), _ = draw(policy, Judge(), settings)
    silent = replace(second, previews=replace(second.previews, task=replace(second.previews.task, query=None)))
    rewards = [given(0.0, 0.0, 1.5), given(0.0, 0.0, 3.0)]  # mean |advantage| 2/3 and 4/3
    both, one = (update(policy, settings, [first, other], rewards) for other in (second, silent))
    assert both.advantage_abs == pytest.approx({"text": 1.0, "image": 1.0})
    assert one.advantage_abs == pytest.approx({"text": 2 / 3, "image": 1.0})
    assert update(policy, settings, [silent], rewards[1:]).advantage_abs["text"] is None


def test_a_group_with_too_few_rewards_is_skipped(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="2")
    good = given(0.1, 0.5, 0.9, None)
    alone, both = make_policy(), make_policy()
    groups, _ = draw(alone, Judge(), settings)
    ref = reference(make_policy)
    expected = update(alone, settings, groups[:1], [good], ref=ref)
    found = update(both, settings, groups, [good, given(None, 0.2, None, None)], ref=ref)
    assert (expected.skipped, found.skipped) == (0, 1)
    assert found == replace(expected, skipped=1)
    assert equal(weights(both), weights(alone))


@pytest.mark.parametrize(
    ("options", "few_are_skipped"),
    [({"LOSS__NORMALISE": name}, name == "group_std") for name in ("group_std", "group_std_paper", "batch_std", "none")]
    + [(GDPO, True)],
)
def test_group_std_skips_groups_of_few_rewards(
    make_policy: MakePolicy, tiny_settings: MakeSettings, options: dict[str, str], few_are_skipped: bool
) -> None:
    """And "gdpo" does: two rewards of eight rollouts would become +-.707. Four of eight are enough for all forms."""
    settings = tiny_settings(SCREEN__GROUP_SIZE="8", DATA__GENEVAL_SHARE="0", **STILL, **NO_KL, **options)
    policy = make_policy()
    groups, _ = draw(policy, Judge(), settings)
    values = (0.5, 0.5001, 0.75, 0.25)
    for count, skipped in ((2, few_are_skipped), (3, few_are_skipped), (4, False)):
        scored = [Reward(-value, {"a": value, "b": value}) for value in values[:count]]
        found = update(policy, settings, groups, [[*scored, *[LOST] * (8 - count)]])
        assert (found.skipped, found.grad_norm is None) == (skipped, skipped)


def test_the_gradient_is_clipped_to_its_norm(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, settings = make_policy(), tiny_settings(**STILL, **NO_KL)
    groups, rewards = draw(policy, Judge(), tiny_settings())
    whole = update(policy, settings, groups, rewards)
    full = gradient(policy).clone()
    monkeypatch.setattr("trainer.update.MAX_GRAD_NORM", 1e-4)
    clipped = update(policy, settings, groups, rewards)
    assert whole.grad_norm == clipped.grad_norm == pytest.approx(float(full.norm()), rel=1e-5)
    assert float(full.norm()) > 1e-3
    assert float(gradient(policy).norm()) == pytest.approx(1e-4, rel=1e-3)
    assert float(torch.nn.functional.cosine_similarity(gradient(policy), full, dim=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(
    make_policy: MakePolicy, tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings = tiny_settings(PROMPTS_PER_STEP="2")
    policy, ref = make_policy(), reference(make_policy)
    groups, rewards = draw(policy, Judge(), settings)
    optimizer = make_optimizer(policy, settings)
    update(policy, settings, groups, rewards, ref=ref, optimizer=optimizer)  # so that it has a state to lose
    before, state = weights(policy), _flat(optimizer)
    terms, bad = policy.terms, groups[1].rollouts[0].image

    def poisoned(segments: Any, step: int, **options: Any) -> Any:
        found = terms(segments, step, **options)
        if segments[0] is not bad or step != 2:
            return found
        new = found.new_BD
        wrong = new * math.nan if where == "loss" else new + (new.sum() * 0).sqrt()  # whose slope at 0 is infinite
        return replace(found, new_BD=wrong)

    monkeypatch.setattr(policy, "terms", poisoned)
    message = r"image loss is nan for prompt '.+'" if where == "loss" else "gradient's norm is nan"
    with pytest.raises(NonFinite, match=message) as caught:
        update(policy, settings, groups, rewards, ref=ref, optimizer=optimizer, step=1)
    assert caught.value.group == (1 if where == "loss" else None)
    assert equal(weights(policy), before)
    assert equal(_flat(optimizer), state)


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()
    flat = {f"{i}.{k}": torch.as_tensor(v).clone() for i, own in state["state"].items() for k, v in own.items()}
    return {**flat, "lr": torch.tensor(state["param_groups"][0]["lr"])}


def test_the_learning_rate_warms_up(make_policy: MakePolicy, tiny_settings: MakeSettings) -> None:
    policy, tiny = make_policy(), tiny_settings(OPTIMIZER__WARMUP_STEPS="3", OPTIMIZER__LR="8e-4", **NO_KL)
    groups, rewards = draw(policy, Judge(), tiny)
    optimizer = make_optimizer(policy, tiny)
    update(policy, tiny, groups, rewards, optimizer=optimizer, step=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(4e-4)
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.9, 0.999), 1e-3)


def test_the_slope_pairs_kept_scores_with_their_rewards(policy: ShowO, tiny_settings: MakeSettings) -> None:
    scores = iter((0.1, 0.9, 0.2, 0.8, 0.6, 0.7, 0.3, 0.4))
    settings = tiny_settings()
    groups, _ = draw(policy, Judge(surrogate=lambda item: next(scores)), settings, threshold=0.5)
    slopes = every_slope(dict.fromkeys(MODALITIES, KNOWN))
    found = update_reward_slopes(slopes, [replace(groups[0], rewards=tuple(given(1.0, None, 2.0, 4.0)))])
    moved, previews = KNOWN.update([0.9, 0.6, 0.7], [1.0, 2.0, 4.0]), groups[0].previews
    assert found == {**slopes, **{(name, previews.task.pathway, previews.step): moved for name in MODALITIES}}
    assert update_reward_slopes(slopes, [replace(groups[0], rewards=tuple(given(None, None, None, 4.0)))]) == slopes
