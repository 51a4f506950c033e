"""Combine an item's scores into one reward, by weights and a rule for missing scores. Pure.

    reward = sum over components k of w_k * value_k

The weights are not rescaled. Sync-R1's reward (eq. 34) differs in two ways, which an ensemble may ask for: its weights
depend on the item's concept kind ((TIER, BER, DER, FER) = (0.4, 0.3, 0.3, 0) for animals and objects, (0.4, 0.2, 0.2,
0.2) for people), and each value is clipped at zero, max(0, value_k), so that with values <= 1 the reward lies in
[0, sum of w]. The paper does not say what an unmeasured component does; here the reward fails too, or its weight is
redistributed (`MissingPolicy`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from synod.contracts import Concept, ConceptKind, Outcome, Score, ScoreFailure
from synod.errors import InvalidItem, MissingInput, NonFinite

MissingPolicy = Literal["fail", "renormalise"]
Weights = Mapping[str, float]


def weights_for(
    ensemble: str, weights: Weights | None, by_kind: Mapping[ConceptKind, Weights], concept: Concept | None
) -> Weights | ScoreFailure:
    """Return the weights that `ensemble` gives an item: those of its concept's kind if there are any, else `weights`.

    An ensemble without `weights` gives a MissingInput failure for an item without a concept of a kind in `by_kind`.
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
    """The scorers whose value the reward depends on: those weighted above 0, in order."""
    return tuple(name for name, weight in weights.items() if weight > 0)


def combine(
    scores: Mapping[str, Outcome], weights: Weights, missing: MissingPolicy = "fail", *, clip_at_zero: bool = False
) -> Outcome:
    """Return one item's reward. `weights` are finite and >= 0; a component weighted 0 is neither required nor read.

    `clip_at_zero` counts a negative value as 0 (eq. 34); without it, a negative value lowers the reward. A required
    component that failed or is absent: under 'fail' the reward is a failure (retryable only if every such component
    is); under 'renormalise' the measured components' weights are scaled to the same total, and the reward is a
    failure only when none was measured. `detail` holds per component its value, weight and contribution.
    """
    names = required(weights)
    if not names:
        return ScoreFailure.of(InvalidItem("all weights are 0, so the reward is undefined; weigh at least one scorer"))
    measured = {name: value for name in names if (value := _finite_value(scores.get(name))) is not None}
    lost = [name for name in names if name not in measured]
    if lost and (missing == "fail" or not measured):
        return _failed(scores, weights, lost)
    scale = sum(weights[n] for n in names) / sum(weights[n] for n in measured) if lost else 1.0
    components = {}
    for name, value in measured.items():
        weight = weights[name] * scale
        contribution = weight * (max(0.0, value) if clip_at_zero else value)
        components[name] = {"value": value, "weight": weight, "contribution": contribution}
    reward = sum(component["contribution"] for component in components.values())
    if not math.isfinite(reward):  # huge finite weights can still overflow
        return ScoreFailure.of(NonFinite(f"the reward of {', '.join(measured)} is {reward}; give smaller weights"))
    return Score(reward, {"components": components, "missing": lost} if lost else {"components": components})


def _finite_value(outcome: Outcome | None) -> float | None:
    return outcome.value if isinstance(outcome, Score) and math.isfinite(outcome.value) else None


def _failed(scores: Mapping[str, Outcome], weights: Weights, lost: list[str]) -> ScoreFailure:
    """One failure for the reward: the first reason that no retry helps, else the first reason."""
    reasons = [(name, _reason(scores.get(name))) for name in lost]
    name, worst = next((reason for reason in reasons if not reason[1].retryable), reasons[0])
    message = f"the reward needs '{name}' (weight {weights[name]:g}), which failed: {worst.message}"
    return ScoreFailure(worst.code, message, worst.retryable)


def _reason(outcome: Outcome | None) -> ScoreFailure:
    if isinstance(outcome, ScoreFailure):
        return outcome
    return ScoreFailure.of(
        MissingInput("it was not scored") if outcome is None else NonFinite(f"its value is {outcome.value}")
    )
