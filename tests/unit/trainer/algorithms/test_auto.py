"""The choice of a screen: by hand, against simulated Gaussian populations, and on noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest

from trainer.algorithms.audit import Correlation
from trainer.algorithms.auto import MEMORY, AutoScreen, Estimate, Foresight, group_work
from trainer.algorithms.costs import Costs, Work

G, N, T = 9, 18, 10
ONE = Work(1, 1, 1, 1, 1, 1)
STEPS_ONLY = Costs(Work(steps=1.0), ONE)  # a denoising step takes a second, nothing else any time


def equal_groups(count: int, rho: float) -> Correlation:
    """The sums over so many groups with one correlation."""
    return Correlation(count, count * rho, count, count, tuple(count * one for one in (rho**2, rho, rho, 1, 1, 1)))


def known(rho: float, contrast: float, error: float = 0.0, groups: int = 10) -> Foresight:
    """The sums over groups of equal correlations; the signal of rho 1 has this standard error."""
    total = groups * (contrast**2 + (groups - 1) * error**2)
    return Foresight(equal_groups(groups, rho), groups * contrast, total)


def gains(screen: AutoScreen, costs: Costs = STEPS_ONLY) -> dict[int | None, Estimate]:
    return screen.gains(costs, G, has_answers=True)


def decided(screen: AutoScreen, costs: Costs = STEPS_ONLY) -> int | None:
    return screen.moved(gains(screen, costs)).step


def test_the_work_of_a_group_by_hand() -> None:
    """Nine of eighteen; the previews of a screen at step 2 are decoded and scored."""
    assert group_work(None, G, T, has_answers=True) == Work(9, 90, 9, 0, 9, 9)
    assert group_work(0, G, T, has_answers=True) == Work(18, 90, 9, 18, 9, 9)
    assert group_work(2, G, T, has_answers=False) == Work(0, 18 * 2 + 9 * 8, 18 + 9, 18, 9, 9)
    assert group_work(T, G, T, has_answers=True) == Work(18, 180, 18, 0, 18, 9)
    # an edit and its way back: the second image of finished rollouts is drawn whole
    assert group_work(None, G, T, has_answers=False, draws=2) == Work(0, 180, 18, 0, 9, 9)
    assert group_work(2, G, T, has_answers=False, draws=2) == Work(0, 18 * 2 + 9 * 18, 18 + 18, 18, 9, 9)
    assert group_work(T, G, T, has_answers=False, draws=2) == Work(0, 360, 36, 0, 18, 9)


def test_a_good_surrogate_with_cheap_previews_is_chosen() -> None:
    """rho .9 at step 2: a signal of 1 + .81 * .9 = 1.729 in 108 s, where a plain group takes 90 s."""
    screen = AutoScreen(None, 10, {2: known(0.9, 0.9), T: known(1.0, 0.9)})
    assert gains(screen)[2].value == pytest.approx(1.729 * 90 / 108)
    assert gains(screen)[T].value == pytest.approx(1.9 * 90 / 180)
    assert decided(screen) == 2
    dear = Costs(Work(steps=1.0, scores=10.0), ONE)  # a preview's score takes 10 s
    assert gains(screen, dear)[2].value == pytest.approx(1.729 * 90 / 288)
    assert decided(screen, dear) is None
    updates = Costs(Work(steps=1.0, rollouts=50.0), ONE)  # an update 50 s: finish all, update on half
    screen = AutoScreen(None, 10, {2: known(0.5, 0.9), T: known(1.0, 0.9)})
    assert gains(screen, updates)[T].value == pytest.approx(1.9 * 540 / 630)
    assert decided(screen, updates) == T


def test_a_surrogate_without_correlation_is_given_up() -> None:
    screen = AutoScreen(2, 10, {2: known(0.0, 0.9), T: known(1.0, 0.9)})
    assert gains(screen)[2] == Estimate(pytest.approx(90 / 108), 0.0)
    assert decided(screen) is None


@pytest.mark.parametrize(("error", "moves"), [(0.1, False), (0.01, True)])
def test_a_screen_moves_by_more_than_the_error(error: float, moves: bool) -> None:
    """Signals of 1.30 and 1.40 at steps 0 and T cost the same here; the errors of both count."""
    free = Costs(Work(rollouts=1.0), ONE)
    screen = AutoScreen(0, 10, {0: known(1.0, 0.3, error), T: known(1.0, 0.4, error)})
    assert gains(screen, free)[T] == Estimate(pytest.approx(1.4), pytest.approx(error))
    assert decided(screen, free) == (T if moves else 0)


def test_a_noisy_gain_does_not_block_a_certain_move() -> None:
    """The highest gain exceeds the present one by less than its error; of those that exceed it, no screen is best."""
    screen = AutoScreen(0, 10)
    noisy: dict[int | None, Estimate] = {None: Estimate(1.0), 0: Estimate(0.80, 0.02)}
    noisy |= {5: Estimate(1.10, 0.40), T: Estimate(0.90, 0.01)}
    assert screen.moved(noisy) == AutoScreen(None, 10)
    assert screen.moved({**noisy, 5: Estimate(1.10, 0.20)}) == AutoScreen(5, 10)
    unsure: dict[int | None, Estimate] = {**noisy, 0: Estimate(0.80, 0.30)}
    assert screen.moved(unsure) == screen


def test_nothing_moves_without_evidence() -> None:
    foresights = {2: known(0.9, 0.9), T: known(1.0, 0.9)}
    assert decided(AutoScreen(0, 2, {0: known(0.0, 0.9), **foresights})) == 0
    assert decided(AutoScreen(0, 3, {0: known(0.0, 0.9), **foresights})) == 2
    assert gains(AutoScreen(0, 2, foresights)) == {}
    flat = AutoScreen(0)
    for _ in range(9):
        flat = flat.add({0: [0.5, 0.25] * 9}, [0.5] * N, G, T)
    assert (flat.measured, decided(flat)) == (0, 0)  # equal rewards say nothing
    never_scored = Costs(Work(steps=1.0), Work(1, 1, 1, 0, 1, 1))
    assert gains(AutoScreen(None, 9, foresights), never_scored) == {}
    assert decided(AutoScreen(None, 9, foresights), never_scored) is None


@pytest.mark.parametrize(("mean", "square"), [(0.5, 0.21), (0.1, 0.0)])
def test_the_error_of_a_correlation_is_subtracted(mean: float, square: float) -> None:
    """Five groups with xx = yy = 1, and xy the mean, which is rho, and four that are sqrt(.2) above or below.

    A group's influence on rho is (xy - mean) / 5, so its variance is 4 * .2 / 25 * 5 / 4 = .04. It is subtracted:
    .5^2 - .04 = .21, and .1^2 - .04 counts as 0.
    """
    xy = [mean + math.sqrt(0.2) * sign for sign in (1, 1, -1, -1, 0)]
    squares = (sum(one**2 for one in xy), sum(xy), sum(xy), 5.0, 5.0, 5.0)
    correlation = Correlation(5, sum(xy), 5.0, 5.0, squares)
    assert (correlation.value, correlation.error) == (pytest.approx(mean), pytest.approx(0.2))
    signal = Foresight(correlation, 5 * 0.9, 5 * 0.81).signal  # every contrast is .9
    assert signal.value == pytest.approx(1 + 0.9 * square)
    assert signal.error == pytest.approx(0.9 * math.sqrt(4 * mean**2 * 0.04 + 2 * 0.04**2))


def test_false_rejections_by_hand() -> None:
    """Of four the first and the last have extreme rewards; a score that ranks them in the middle rejects both."""
    rewards = [0.0, 0.5, 0.5, 1.0]
    found = [Foresight().add(scores, rewards, 2, last=False) for scores in ([1, 2, 3, 4], [2, 1, 4, 3], [3, 1, 2, 4])]
    assert [one.false_rejections for one in found] == [0.0, 1.0, 0.5]
    assert Foresight().add(rewards, rewards, 2, last=True).false_rejections == 0.0
    assert found[1].add([1, 2, 3, 4], rewards, 2, last=False).false_rejections == pytest.approx(MEMORY / (MEMORY + 1))
    assert Foresight().false_rejections is None


def test_scores_that_are_missing_foretell_nothing() -> None:
    """Where no term is known, a screen of answers is given up for none: it draws answers in vain."""
    screen = AutoScreen(0)
    for seed in range(3):
        screen = screen.add({0: [None] * N}, np.random.default_rng(seed).standard_normal(N).tolist(), G, T)
    assert screen.foresights[0] == Foresight()
    assert decided(screen, Costs(Work(answers=1.0, steps=1.0, scores=0.1), ONE)) is None


def test_the_sums_of_a_measured_group() -> None:
    """Against numpy: the last group counts once, the one before MEMORY times; a pair without a number is left out."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, N)), rng.standard_normal((2, N))
    found = Foresight()
    for score, reward in zip(x, y, strict=True):
        found = found.add([*score, None, 1.0], [*reward, 1.0, None], G, last=False)
    weight = np.array([[MEMORY], [1.0]])

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        a, b = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
        ab, aa, bb = ((weight * product).sum() for product in (a * b, a * a, b * b))
        return float(ab / math.sqrt(aa * bb))

    assert found.correlation.value == pytest.approx(correlation(x, y))
    x_rank, y_rank = (np.argsort(np.argsort(one, 1), 1) for one in (x, y))
    assert found.rank_correlation.value == pytest.approx(correlation(x_rank, y_rank))
    ranked = np.sort(x - x.mean(1, keepdims=True), 1)
    kept = np.concatenate([ranked[:, :4], ranked[:, -5:]], 1)
    contrast = np.square(kept).sum(1) / x.var(1, ddof=1) / (G - 1) - 1
    assert found.contrast == pytest.approx((weight[:, 0] * contrast).sum())
    assert found.squares == pytest.approx((weight[:, 0] * contrast**2).sum())
    assert found.add(x[0].tolist(), [0.5] * N, G, last=False) == found  # equal rewards say nothing


# -- simulated populations -------------------------------------------------------------------------------------------


def population(rng: np.random.Generator, rhos: Mapping[int, float]) -> tuple[dict[int, list[float]], list[float]]:
    """Scores of a group at each step, and its rewards, all with mean 0 and variance 1."""
    y = rng.standard_normal(N)
    scores = {s: (rho * y + math.sqrt(1 - rho**2) * rng.standard_normal(N)).tolist() for s, rho in rhos.items()}
    return scores, y.tolist()


@cache
def power(rho: float, groups: int = 4000) -> float:
    """The sum of squared advantages of nine of eighteen by a score, over a plain group's 8, by brute force."""
    rng, found = np.random.default_rng(1), 0.0
    for _ in range(groups):
        x, y = (np.array(one) for one in (lambda scores, y: (scores[0], y))(*population(rng, {0: rho})))
        order = np.argsort(np.abs(y - y.mean()) if rho == 1 else x)
        kept = order[-9:] if rho == 1 else np.concatenate([order[:4], order[-5:]])
        baseline = y[kept].mean() - rho * (x[kept].mean() - x.mean())  # `population_baseline`
        found += float(np.square(y[kept] - baseline).sum())
    return found / groups / (G - 1)


def simulated(rhos: Mapping[int, float], costs: Costs, groups: int, seed: int, start: int | None) -> list[int | None]:
    """The screen's step after each measured group."""
    rng, screen, found = np.random.default_rng(seed), AutoScreen(start), []
    for _ in range(groups):
        scores, rewards = population(rng, rhos)
        screen = screen.add(scores, rewards, G, T)
        screen = screen.moved(gains(screen, costs))
        found.append(screen.step)
    return found


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 1.0])
def test_the_signal_is_that_of_a_simulated_screen(rho: float) -> None:
    """Of forty sums over some twenty groups each, the mean is unbiased, and the spread is the stated error."""
    rng, found = np.random.default_rng(2), []
    for _ in range(40):
        foresight = Foresight()
        for _ in range(20):
            scores, rewards = population(rng, {0: rho})
            foresight = foresight.add(rewards if rho == 1 else scores[0], rewards, G, last=rho == 1)
        found.append(foresight.signal)
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(power(rho), abs=0.05)
    assert 0.4 * errors.mean() <= values.std() <= 1.6 * errors.mean()


SCENARIOS: dict[str, tuple[Sequence[float], Work, int | None]] = {  # rho at steps 0, 2 and 5; prices; the best
    "updates are dear": ((0.1, 0.2, 0.3), Work(0.1, 0.1, 0.1, 0.1, 0.1, 5.0), T),
    "answers foretell": ((0.95, 0.95, 0.95), Work(0.1, 1.0, 0.1, 0.1, 0.1, 1.0), 0),
    "late previews foretell": ((0.0, 0.2, 0.95), Work(0.1, 1.0, 0.1, 0.1, 0.1, 0.1), 5),
    "early previews foretell": ((0.0, 0.8, 0.85), Work(0.1, 1.0, 0.1, 0.1, 0.1, 0.1), 2),
    "nothing pays": ((0.0, 0.1, 0.3), Work(0.1, 1.0, 0.1, 0.1, 0.1, 0.1), None),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_best_signal_per_second_is_chosen(name: str) -> None:
    """From every start, after forty measured groups; the best is found again by brute force."""
    rhos, prices, best = SCENARIOS[name]
    costs, by_step = Costs(prices, ONE), dict(zip((0, 2, 5), rhos, strict=True))

    def seconds(step: int | None) -> float:
        return costs.of(group_work(step, G, T, has_answers=True)) or math.nan

    gain: dict[int | None, float] = {None: 1.0, T: power(1.0) * seconds(None) / seconds(T)}
    gain |= {step: power(rho) * seconds(None) / seconds(step) for step, rho in by_step.items()}
    assert max(gain, key=lambda step: gain[step]) == best
    for seed, start in enumerate((None, 0, 2, 5, T)):
        assert simulated(by_step, costs, 40, seed, start)[-1] == best


def test_noise_does_not_move_a_screen() -> None:
    """Three screens that are equally good: in 300 groups it moves a few times, the best estimate often."""
    costs, rng, screen = Costs(Work(rollouts=1.0, rewards=2.0), ONE), np.random.default_rng(0), AutoScreen(0)
    found, best = [], []
    for _ in range(300):
        scores, rewards = population(rng, {0: 0.5, 2: 0.5, 5: 0.5})
        screen = screen.add(scores, rewards, G, T)
        values = gains(screen, costs) or {0: Estimate(1.0)}
        screen = screen.moved(values)
        found.append(screen.step)
        best.append(max(values, key=lambda step: values[step].value))
    moves, flips = (sum(a != b for a, b in itertools.pairwise(steps)) for steps in (found, best))
    assert moves <= 10
    assert flips > 5 * moves


def test_a_screen_follows_the_policy() -> None:
    """A correlation that is lost after 60 groups is forgotten, and the screen moves."""
    rng, screen, costs = np.random.default_rng(0), AutoScreen(None), Costs(Work(0.1, 1, 0.1, 0.1, 0.1, 0.1), ONE)
    found = []
    for place in range(140):
        scores, rewards = population(rng, {0: 0.9 if place < 60 else 0.0})
        screen = screen.add(scores, rewards, G, T)
        screen = screen.moved(gains(screen, costs))
        found.append(screen.step)
    assert found[59] == 0
    assert found[-1] is None
