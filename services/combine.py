"""Combine an item's scores into one reward. Pure functions.

    reward = sum over components k of w_k * value_k

The weights are used as given; they need not sum to 1. Sync-R1's reward (eq. 34) differs in two ways, which an ensemble
may ask for. Its weights depend on the kind of the item's concept: (TIER, BER, DER, FER) = (0.4, 0.3, 0.3, 0) for
animals and objects, (0.4, 0.2, 0.2, 0.2) for people. And each value is clipped at zero, max(0, value_k), so that with
values <= 1 the reward lies in [0, sum of w].

The paper does not define the reward when a component has no score. Under `MissingPolicy` the reward fails, or the other
weights are scaled up to the same sum ('renormalise').
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from synod.contracts import Concept, ConceptKind, Outcome, Score, ScoreFailure
from synod.errors import InvalidItem, MissingInput, NonFinite
from synod.values import total

MissingPolicy = Literal["fail", "renormalise"]
Weights = Mapping[str, float]


def weights_for(
    ensemble: str, weights: Weights | None, by_kind: Mapping[ConceptKind, Weights], concept: Concept | None
) -> Weights | ScoreFailure:
    """Return the item's weights: those for the kind of its concept, or `weights` if `by_kind` does not have the kind.

    If `weights` is None as well, return a MissingInput failure.
    """
    if concept is not None and concept.kind in by_kind:
        return by_kind[concept.kind]
    if weights is not None:
        return weights
    known = ", ".join(sorted(by_kind))
    found = "the item has no 'concept'" if concept is None else f"the item's concept is of kind '{concept.kind}'"
    return ScoreFailure.of(
        MissingInput(
            f"{found}; ensemble '{ensemble}' has weights for the concept kinds {known} only: give the item a "
            "'concept' with one of them, or give 'weights' in the request"
        )
    )


def required(weights: Weights) -> tuple[str, ...]:
    """List the scorers that the reward depends on: those with a weight above 0, in order."""
    return tuple(name for name, weight in weights.items() if weight > 0)


def combine(
    scores: Mapping[str, Outcome], weights: Weights, missing: MissingPolicy = "fail", *, clip_at_zero: bool = False
) -> Outcome:
    """Return one item's reward. `weights` are finite and >= 0; a component of weight 0 is ignored.

    `clip_at_zero` counts a negative value as 0 (eq. 34); without it, a negative value lowers the reward. `missing` says
    what happens if a component failed or is absent. 'fail': the reward is a failure, retryable only if each of those
    components is. 'renormalise': the weights of the others are scaled up to the same sum, and the reward is a failure
    only if no component has a score. `detail` holds the value, weight and contribution of each component.
    """
    names = required(weights)
    if not names:
        return ScoreFailure.of(InvalidItem("all weights are 0, so the reward is undefined; weigh at least one scorer"))
    values = {name: value for name in names if (value := _finite_value(scores.get(name))) is not None}
    absent = [name for name in names if name not in values]
    if absent and (missing == "fail" or not values):
        return _reward_failure(scores, weights, absent)
    scale = sum(weights[n] for n in names) / sum(weights[n] for n in values) if absent else 1.0
    components = {}
    for name, value in values.items():
        weight = weights[name] * scale
        contribution = weight * (max(0.0, value) if clip_at_zero else value)
        components[name] = {"value": value, "weight": weight, "contribution": contribution}
    reward = total([component["contribution"] for component in components.values()])
    if not math.isfinite(reward):  # huge finite weights can still overflow
        return ScoreFailure.of(NonFinite(f"the reward of {', '.join(values)} is {reward}; give smaller weights"))
    return Score(reward, {"components": components, "missing": absent} if absent else {"components": components})


def _finite_value(outcome: Outcome | None) -> float | None:
    return outcome.value if isinstance(outcome, Score) and math.isfinite(outcome.value) else None


def _reward_failure(scores: Mapping[str, Outcome], weights: Weights, absent: list[str]) -> ScoreFailure:
    """Return the failure of the first component in `absent` that cannot be retried, or of the first one."""
    failures = [(name, _component_failure(scores.get(name))) for name in absent]
    name, cause = next((pair for pair in failures if not pair[1].retryable), failures[0])
    message = f"the reward needs '{name}' (weight {weights[name]:g}), which failed: {cause.message}"
    return ScoreFailure(cause.code, message, cause.retryable)


def _component_failure(outcome: Outcome | None) -> ScoreFailure:
    if isinstance(outcome, ScoreFailure):
        return outcome
    return ScoreFailure.of(
        MissingInput("it was not scored") if outcome is None else NonFinite(f"its value is {outcome.value}")
    )
