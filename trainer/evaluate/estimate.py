"""Means of scores with standard errors that allow for images of one prompt being alike. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error, None below 1 value and below 2 prompts.

    It is over `images` of `prompts`; `missing` further images have no value.
    """

    mean: float | None
    stderr: float | None
    images: int
    prompts: int
    missing: int


def clustered(values: Iterable[tuple[Hashable, float | None]]) -> Estimate:
    """Return the mean of all values with a standard error clustered by prompt; None is a missing value.

    `values` are (prompt, value of one image). With P prompts, N values y and their mean m, the standard
    error is sqrt(P / (P - 1) * sum over prompts of (sum of (y - m) over the prompt's images)^2) / N: the
    cluster-robust estimator of a mean (Liang and Zeger 1986; Cameron and Miller 2015, eq. 11 with P / (P - 1)). With
    equally many images of each prompt it is the standard deviation of the prompts' means over sqrt(P), and with one
    image a prompt the usual standard error.
    """
    by_prompt: dict[Hashable, list[float]] = {}
    missing = 0
    for prompt, value in values:
        if value is None:
            missing += 1
        else:
            by_prompt.setdefault(prompt, []).append(value)
    images, prompts = sum(map(len, by_prompt.values())), len(by_prompt)
    if not images:
        return Estimate(None, None, 0, 0, missing)
    mean = math.fsum(value for found in by_prompt.values() for value in found) / images
    residuals = [math.fsum(value - mean for value in found) for found in by_prompt.values()]
    stderr = None
    if prompts > 1:
        stderr = math.sqrt(prompts / (prompts - 1) * math.fsum(r * r for r in residuals)) / images
    return Estimate(mean, stderr, images, prompts, missing)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the unweighted mean of the estimates' means; they are taken as independent.

    It is None if one of them has no mean, and its standard error if one has none.
    """
    means = [one.mean for one in estimates if one.mean is not None]
    errors = [one.stderr for one in estimates if one.stderr is not None]
    count = len(estimates)
    return Estimate(
        math.fsum(means) / count if means and len(means) == count else None,
        math.sqrt(math.fsum(e * e for e in errors)) / count if errors and len(errors) == count else None,
        sum(one.images for one in estimates),
        sum(one.prompts for one in estimates),
        sum(one.missing for one in estimates),
    )
