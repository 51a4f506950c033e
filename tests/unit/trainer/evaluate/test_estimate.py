"""Clustered standard errors: by hand, against the sandwich formula, and on images that are alike."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate.compare import summary
from trainer.evaluate.estimate import Estimate, clustered, mean_of

VALUES = st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(-10, 10)), max_size=40)


def test_a_worked_example() -> None:
    values = [(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0), (2, 0.0), (2, None)]
    found = clustered(values)
    assert found.mean == pytest.approx(0.6)
    # residuals by prompt: -0.2, 0.8, -0.6; sqrt(3 / 2 * 1.04) / 5
    assert found.stderr == pytest.approx(0.24980, abs=1e-5)
    assert (found.images, found.prompts, found.missing) == (5, 3, 1)


@given(VALUES)
def test_it_equals_the_sandwich_of_least_squares(values: list[tuple[int, float | None]]) -> None:
    """Regress the values on a constant: (X'X)^-1 (sum over prompts of X_p' u_p u_p' X_p) (X'X)^-1 P / (P - 1)."""
    known = [(prompt, value) for prompt, value in values if value is not None]
    found = clustered(values)
    assert (found.images, found.missing) == (len(known), len(values) - len(known))
    prompts = sorted({prompt for prompt, _ in known})
    assert found.prompts == len(prompts)
    if len(prompts) < 2:
        assert found.stderr is None
        assert (found.mean is None) == (not known)
        return
    y, of = np.array([value for _, value in known]), np.array([prompt for prompt, _ in known])
    x = np.ones((len(y), 1))
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ y
    u = y - x @ beta
    meat = sum(np.outer(x[of == p].T @ u[of == p], x[of == p].T @ u[of == p]) for p in prompts)
    variance = (bread @ meat @ bread).item() * len(prompts) / (len(prompts) - 1)
    assert found.mean == pytest.approx(beta.item(), abs=1e-9)
    assert found.stderr == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-9)


def test_balanced_images_give_the_error_of_prompt_means() -> None:
    values = np.random.default_rng(0).normal(size=(7, 4))
    found = clustered((p, float(v)) for p, row in enumerate(values) for v in row)
    assert found.stderr == pytest.approx(statistics.stdev(values.mean(axis=1)) / math.sqrt(7))
    one_each = clustered(enumerate(map(float, values[:, 0])))
    assert one_each.stderr == pytest.approx(summary(values[:, 0].tolist()).stderr)


def test_alike_images_do_not_shrink_the_error() -> None:
    """Images share their prompt's effect: the true error is known, and that of independent images is too small."""
    rng, prompts, images = np.random.default_rng(1), 60, 4
    true = math.sqrt((1.0 + 0.5**2 / images) / prompts)
    found, naive = [], []
    for _ in range(100):
        values = rng.normal(size=(prompts, 1)) + 0.5 * rng.normal(size=(prompts, images))
        found.append(clustered((p, float(v)) for p, row in enumerate(values) for v in row).stderr)
        naive.append(summary(values.ravel().tolist()).stderr)
    assert np.mean(found) == pytest.approx(true, rel=0.03)
    assert np.mean(naive) < 0.6 * true


def test_mean_of_tasks_weighs_each_alike() -> None:
    tasks = [Estimate(0.5, 0.3, 400, 100, 2), Estimate(1.0, 0.4, 4, 1, 0)]
    found = mean_of(tasks)
    assert (found.mean, found.stderr) == (0.75, pytest.approx(0.25))
    assert (found.images, found.prompts, found.missing) == (404, 101, 2)
    assert mean_of([*tasks, Estimate(None, None, 0, 0, 8)]).mean is None
    assert mean_of([tasks[0], Estimate(0.5, None, 1, 1, 0)]).stderr is None
    assert mean_of([]).mean is None
