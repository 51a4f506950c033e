"""The audit of a screen: against scipy, by enumeration of all audits, by hand, and against simulated screens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.algorithms.audit import Audit, Correlation, Observed
from trainer.algorithms.costs import Costs, Work
from trainer.algorithms.screen import best_and_worst, screen, top_up

EIGHTHS = st.integers(-8, 8).map(lambda n: n / 8)


def observed(
    score: Sequence[float], reward: Sequence[float], kept: Sequence[int], audited: Sequence[int], share: float = 1.0
) -> list[Observed]:
    """What an audit sees; every rejected rollout was too low."""
    return [
        Observed(score[i], reward[i], 1.0 if i in kept else 1 / share, i in kept, i not in kept)
        for i in sorted({*kept, *audited})
    ]


@given(st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=4, max_size=12))
def test_a_full_audit_has_the_correlations_of_scipy(pairs: list[tuple[float, float]]) -> None:
    """Ties included, whatever the screen kept."""
    x, y = (list(one) for one in zip(*pairs, strict=True))
    found = Audit().add(x, (0, 1), observed(x, y, (0, 1), range(len(x))), population=True)
    if len(set(y)) < 2:
        assert found.pearson.groups == 0
    elif len(set(x)) < 2:
        assert found.pearson.value is found.spearman.value is None
    else:
        assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_the_sums_are_unbiased_over_all_audits() -> None:
    """Two of six kept; the expectation over the 16 audits is the sum over all six, which the kept alone miss."""
    x, y = [0.9, 0.7, 0.1, 0.4, 0.2, 0.6], [0.5, 0.9, 0.3, 0.0, 0.4, 0.1]
    kept, share, mean = (0, 1), 0.3, np.zeros(3)
    for choice in itertools.product((False, True), repeat=4):
        audited = [i for i, chosen in zip((2, 3, 4, 5), choice, strict=True) if chosen]
        p = share ** len(audited) * (1 - share) ** (4 - len(audited))
        sums = Audit().add(x, kept, observed(x, y, kept, audited, share), population=True).pearson
        mean += p * np.array([sums.xy, sums.xx, sums.yy])
    whole = Audit().add(x, kept, observed(x, y, kept, range(6)), population=True).pearson
    assert mean == pytest.approx([whole.xy, whole.xx, whole.yy], abs=1e-12)
    assert whole.xy == pytest.approx(6 * np.cov(x, y, bias=True)[0, 1])
    alone = Audit().add(x, kept, observed(x, y, kept, ()), population=True).pearson
    assert alone.xy < 0 < whole.xy


def gaussian(groups: int, drawn: int, rho: float, rule: str, share: float, seed: int = 0) -> tuple[Audit, list[float]]:
    """The audit of simulated groups of nine, and the power of their gradient and of plain groups' by the formula."""
    rng, audit, population = np.random.default_rng(seed), Audit(), rule == "best_and_worst"
    signal = noise = 0.0
    for _ in range(groups):
        x = rng.standard_normal(drawn)
        y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(drawn)
        scores = x.tolist()
        chosen = best_and_worst(scores, 9) if population else top_up(screen(scores, math.inf, 9), scores, 9)
        kept = chosen.indices
        audited = [i for i in range(drawn) if i not in kept and rng.random() < share]
        audit = audit.add(
            scores, kept, observed(scores, y.tolist(), kept, audited, share or 1.0), population=population
        )
        reward = y[list(kept)]
        center = reward.mean() - (rho * (x[list(kept)].mean() - x.mean()) if population else 0.0)
        signal, noise = signal + float((reward - center) @ reward), noise + float((reward - center) @ (reward - center))
    if population:  # the rewards' own mean is 0
        return audit, [signal**2 / noise / groups, 8.0]
    return audit, [noise / groups, 8.0]


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("rule", ["first_above", "best_and_worst"])
def test_a_partial_audit_finds_the_correlation(rule: str, rho: float) -> None:
    """3 of 10 rejected rollouts, 400 groups of 9 of 36: within three of its own errors, which are below .04."""
    audit, _ = gaussian(400, 36, rho, rule, 0.3)
    value, error = audit.pearson.value, audit.pearson.error
    assert value is not None
    assert error is not None
    assert error < 0.04
    assert abs(value - rho) < 3 * error
    spearman = 6 / math.pi * math.asin(rho / 2)  # of a Gaussian pair
    assert audit.spearman.value == pytest.approx(spearman, abs=0.05)
    kept_alone, _ = gaussian(400, 36, rho, "first_above", 0.0)
    if rho == 0.8:
        assert (kept_alone.pearson.value or 0.0) < 0.65


def test_the_standard_error_is_that_of_many_audits() -> None:
    found = [gaussian(25, 18, 0.5, "first_above", 0.5, seed)[0].pearson for seed in range(60)]
    spread = float(np.std([one.value for one in found], ddof=1))
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.25)
    assert Correlation().error is None
    assert Correlation().value is None


@pytest.mark.parametrize(
    ("rule", "rho", "expected"),
    [
        ("first_above", 0.0, 1.0),
        ("first_above", 0.5, 0.81),  # the paper's rule, group baseline
        ("best_and_worst", 0.0, 1.0),
        ("best_and_worst", 0.5, 1.5),
        ("best_and_worst", 0.7, 2.0),
    ],
)
def test_the_predicted_signal_is_that_of_a_simulated_screen(rule: str, rho: float, expected: float) -> None:
    """(sum E[a R])^2 / sum E[a^2] over 1500 groups of 9 of 36, relative to a plain group's 8."""
    audit, (power, plain) = gaussian(1500, 36, rho, rule, 1.0)
    assert audit.signal == pytest.approx(power / plain, abs=0.06)
    assert audit.signal == pytest.approx(expected, abs=0.06)


def test_the_counts_of_an_audit_by_hand() -> None:
    """Kept rewards .2, .6 and .4, so the median is .4; of three rejected and finished rollouts .5 is above it."""
    score = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.75]
    reward = [0.2, 0.6, 0.4, 0.5, 0.4, 0.1, 0.9]
    seen = [
        *(Observed(score[i], reward[i], 1.0, kept=True, rejected=False) for i in (0, 1, 2)),
        *(Observed(score[i], reward[i], 2.0, kept=False, rejected=True) for i in (3, 4, 5)),
        Observed(0.75, 0.9, 2.0, kept=False, rejected=False),  # above the threshold, but the group was full
    ]
    found = Audit().add(score, (0, 1, 2), seen, population=False)
    assert found.false_rejections == pytest.approx(1 / 3)
    assert (found.groups, found.drawn, found.kept, found.audited, found.freedom) == (1, 7, 3, 4, 2)
    assert found.spread == pytest.approx(0.02 / np.var(score, ddof=1))
    assert Audit().false_rejections is Audit().signal is Audit().steps_saved is None


def test_false_rejections_of_both_tails_by_hand() -> None:
    """Two of six are kept, both .1 from their mean of .4; .1, .9, .55 and .65 are further from it."""
    reward = [0.5, 0.3, 0.1, 0.9, 0.55, 0.65]
    seen = observed([0.9, 0.0, 0.4, 0.5, 0.6, 0.7], reward, (0, 1), range(6))
    found = Audit().add([0.9, 0.0, 0.4, 0.5, 0.6, 0.7], (0, 1), seen, population=True, both_tails=True)
    assert (found.rejected, found.missed, found.false_rejections) == (4, 4, 1.0)
    one_tail = Audit().add([0.9, 0.0, 0.4, 0.5, 0.6, 0.7], (0, 1), seen, population=True)
    assert one_tail.false_rejections == 0.75, ".9, .55 and .65 are above the kept ones' median, .4"


def test_false_rejections_of_both_tails_agree_at_every_share() -> None:
    """A choice at random. The kept ones are nearer to their own mean, by sqrt(8/9), the others further, sqrt(10/9):
    2 (1 - Phi(.674 sqrt(8/10))) = .546 of them are further than the median."""
    rng = np.random.default_rng(0)
    for share in (1.0, 0.2):
        found = Audit()
        for _ in range(400):
            score, reward = rng.normal(size=(2, 18)).tolist()
            kept = best_and_worst(score, 9).indices
            audited = [i for i in range(18) if i not in kept and rng.random() < share]
            seen = observed(score, reward, kept, audited, share)
            found = found.add(score, kept, seen, population=True, both_tails=True)
        assert found.false_rejections == pytest.approx(0.546, abs=0.04)


def test_the_ranks_of_a_partial_audit_by_hand() -> None:
    """Scores are ranked among all four previews, rewards among the three observed, of which the last counts twice."""
    x, y = [0.9, 0.7, 0.1, 0.4], [0.5, 0.9, 0.3, 0.0]
    found = Audit().add(x, (0, 1), observed(x, y, (0, 1), (2,), share=0.5), population=True)
    score_rank, reward_rank = [3.5 / 4, 2.5 / 4, 0.5 / 4], [2.5 / 4, 3.5 / 4, 1 / 4]
    assert found.spearman == Correlation().add(score_rank, reward_rank, [1.0, 1.0, 2.0], 4)


def test_equal_scores_change_no_signal() -> None:
    found = Audit().add([0.5] * 6, (0, 1, 2), observed([0.5] * 6, [0.0] * 6, (0, 1, 2), ()), population=True)
    assert (found.spread, found.freedom, found.pearson.groups) == (2.0, 2, 0)


def test_signal_per_second_by_hand() -> None:
    """40 previews of 1 s with their scores and images of 3 s, and 10 kept of 9 s: 250 s, in place of 10 of 10.5 s."""
    x, y = [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]
    work, plain = Work(40, 40 * 1 + 10 * 4, 50, 40, 10, 10), Work(10, 10 * 5, 10, 0, 10, 10)
    audit = Audit(Correlation().add(x, y, [1.0] * 4, 4), freedom=9, spread=18.0, work=work, plain=plain)
    seconds = Work(answers=20.0, steps=40.0, images=25.0, scores=100.0, rewards=15.0, rollouts=50.0)
    assert audit.signal_per_second(Costs(seconds, replace(work, rollouts=0))) is None  # there was no update yet
    assert audit.signal == 2.0
    screened, plainly = 20 + 40 + 25 + 100 + 15 + 50, 10 * (0.5 + 5 * 0.5 + 0.5 + 1.5 + 5)
    assert audit.signal_per_second(Costs(seconds, work)) == pytest.approx(2.0 * plainly / screened)


def test_costs_fade() -> None:
    costs = Costs().add(Work(rollouts=8.0), Work(rollouts=2.0)).add(Work(rollouts=1.0), Work(rollouts=1.0), memory=0.5)
    assert costs == Costs(Work(rollouts=5.0), Work(rollouts=2.0))
    assert costs.of(Work(rollouts=3)) == 7.5
    assert costs.of(Work(rollouts=3, answers=1)) is None  # no answer was written
