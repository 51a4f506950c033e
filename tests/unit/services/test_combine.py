"""The reward: equation 34 computed by hand, and properties for any weights and outcomes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.combine import combine, required, weights_for
from synod.contracts import Concept, Outcome, Score, ScoreFailure

PERSON = {"tier": 0.4, "ber": 0.2, "der": 0.2, "fer": 0.2}
ANIMAL = {"tier": 0.4, "ber": 0.3, "der": 0.3, "fer": 0.0}
LOST = ScoreFailure("replica_lost", "gone", retryable=True)
BAD = ScoreFailure("bad_image", "no image")


def measured(**values: float) -> dict[str, Outcome]:
    return {name: Score(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("weights", "values", "reward"),
    [
        (PERSON, {"tier": 1.0, "ber": 0.5, "der": 0.25, "fer": 0.75}, 0.4 + 0.1 + 0.05 + 0.15),
        (ANIMAL, {"tier": 0.5, "ber": 0.4, "der": 0.6}, 0.2 + 0.12 + 0.18),
        (PERSON, {"tier": 1.0, "ber": -0.9, "der": -0.1, "fer": 0.5}, 0.4 + 0.0 + 0.0 + 0.1),
        ({"tier": 2.0, "ber": 0.0}, {"tier": 0.5}, 1.0),
        (PERSON, {"tier": 0.0, "ber": 0.0, "der": 0.0, "fer": 0.0}, 0.0),
    ],
)
def test_eq_34_by_hand(weights: dict[str, float], values: dict[str, float], reward: float) -> None:
    outcome = combine(measured(**values), weights, clip_at_zero=True)
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(reward, abs=1e-12)
    assert {n: c["value"] for n, c in outcome.detail["components"].items()} == values
    assert sum(c["contribution"] for c in outcome.detail["components"].values()) == pytest.approx(outcome.value)


def test_a_negative_value_lowers_the_reward_unless_clipped() -> None:
    scores, weights = measured(pickscore=0.5, jpeg=-40.0), {"pickscore": 2.0, "jpeg": 0.25}
    plain, clipped = combine(scores, weights), combine(scores, weights, clip_at_zero=True)
    assert isinstance(plain, Score)
    assert isinstance(clipped, Score)
    assert (plain.value, clipped.value) == (1.0 - 10.0, 1.0)
    assert plain.detail["components"]["jpeg"] == {"value": -40.0, "weight": 0.25, "contribution": -10.0}
    assert clipped.detail["components"]["jpeg"] == {"value": -40.0, "weight": 0.25, "contribution": 0.0}


def test_a_reward_is_rounded_once() -> None:
    """.1 + .2 + .3 is .6000000000000001 if each sum is rounded, and .6 in the other order."""
    for names in ("abc", "cba"):
        outcome = combine(measured(a=0.1, b=0.2, c=0.3), dict.fromkeys(names, 1.0))
        assert isinstance(outcome, Score)
        assert outcome.value == 0.6


def test_a_reward_that_overflows_is_a_failure() -> None:
    for weight in (1.0, 10.0):  # the sum is infinite, and the difference of two infinities
        outcome = combine(measured(a=1e308, b=1e308, c=-1e308), dict.fromkeys("abc", weight))
        assert isinstance(outcome, ScoreFailure)
        assert outcome.code == "non_finite"


def test_a_component_of_weight_0_is_ignored() -> None:
    assert required(ANIMAL) == ("tier", "ber", "der")
    with_failure = measured(tier=0.5, ber=0.4, der=0.6) | {"fer": BAD}
    assert combine(with_failure, ANIMAL) == combine(measured(tier=0.5, ber=0.4, der=0.6), ANIMAL)


def test_a_failed_component_fails_the_reward_with_its_code() -> None:
    outcome = combine(measured(tier=1.0, ber=1.0, der=1.0) | {"fer": LOST}, PERSON)
    assert outcome == ScoreFailure("replica_lost", "the reward needs 'fer' (weight 0.2), which failed: gone", True)


def test_a_failure_that_cannot_be_retried_comes_first() -> None:
    outcome = combine({"tier": LOST, "ber": BAD, "der": LOST}, {"tier": 1, "ber": 1, "der": 1})
    assert isinstance(outcome, ScoreFailure)
    assert (outcome.code, outcome.retryable) == ("bad_image", False)


def test_renormalise_scales_the_other_weights_to_the_same_sum() -> None:
    outcome = combine(measured(tier=0.5, ber=0.25, der=1.0) | {"fer": BAD}, PERSON, "renormalise")
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx((0.4 * 0.5 + 0.2 * 0.25 + 0.2 * 1.0) / 0.8)
    assert outcome.detail["missing"] == ["fer"]
    assert outcome.detail["components"]["tier"]["weight"] == pytest.approx(0.5)


def test_renormalise_without_any_score_is_a_failure() -> None:
    assert isinstance(combine(dict.fromkeys(PERSON, BAD), PERSON, "renormalise"), ScoreFailure)


def test_an_absent_component_is_a_missing_input() -> None:
    outcome = combine(measured(tier=1.0), {"tier": 0.5, "ber": 0.5})
    assert isinstance(outcome, ScoreFailure)
    assert outcome.code == "missing_input"


def test_weights_by_kind_depend_on_the_concept() -> None:
    by_kind: Any = {"person": PERSON, "animal": ANIMAL}
    assert weights_for("sync_r1", None, by_kind, Concept("person")) == PERSON
    unweighted = weights_for("sync_r1", None, by_kind, Concept("object"))
    unknown = weights_for("sync_r1", None, by_kind, None)
    for failure, found in ((unweighted, "the item's concept is of kind 'object'"), (unknown, "has no 'concept'")):
        assert isinstance(failure, ScoreFailure)
        assert failure.code == "missing_input"
        assert found in failure.message
        assert "for the concept kinds animal, person only" in failure.message


def test_default_weights_apply_where_no_kind_matches() -> None:
    flat, by_kind = {"ber": 1.0}, {"person": PERSON}
    for concept, expected in ((None, flat), (Concept("object"), flat), (Concept("person"), PERSON)):
        assert weights_for("mixed", flat, by_kind, concept) == expected  # type: ignore[arg-type]
        assert weights_for("plain", flat, {}, concept) == flat


NAMES = st.sampled_from(["tier", "ber", "der", "fer"])
OUTCOMES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(Score), st.floats(-1, 1).map(Score), st.sampled_from([LOST, BAD])
)
WEIGHTS = st.dictionaries(NAMES, st.floats(0, allow_nan=False, allow_infinity=False), max_size=4)
MISSING: Any = st.sampled_from(["fail", "renormalise"])


@given(st.dictionaries(NAMES, OUTCOMES), WEIGHTS, MISSING, st.booleans())
def test_rewards_are_finite_and_failures_never_count_as_0(
    scores: dict[str, Outcome], weights: dict[str, float], missing: Any, clip: bool
) -> None:
    outcome = combine(scores, weights, missing, clip_at_zero=clip)
    usable = {n for n, o in scores.items() if isinstance(o, Score) and math.isfinite(o.value)}
    if isinstance(outcome, Score):
        assert math.isfinite(outcome.value)
        assert outcome.value >= 0 or not clip
        assert usable & set(required(weights))
        assert missing == "renormalise" or set(required(weights)) <= usable
    if missing == "fail" and not set(required(weights)) <= usable:
        assert isinstance(outcome, ScoreFailure)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_weights_that_sum_to_1_keep_the_reward_in_0_to_1(raw: list[float], values: list[float]) -> None:
    weights = {str(i): w / sum(raw) for i, w in enumerate(raw)}
    outcome = combine({str(i): Score(v) for i, v in enumerate(values)}, weights, clip_at_zero=True)
    assert isinstance(outcome, Score)
    assert 0 <= outcome.value <= 1 + 1e-12


@given(st.dictionaries(NAMES, st.floats(-1, 1), min_size=4), st.floats(0, 1), NAMES, st.booleans())
def test_the_reward_grows_with_each_component(values: dict[str, float], more: float, name: str, clip: bool) -> None:
    low = combine(measured(**values), PERSON, clip_at_zero=clip)
    high = combine(measured(**values | {name: values[name] + more}), PERSON, clip_at_zero=clip)
    assert isinstance(low, Score)
    assert isinstance(high, Score)
    assert high.value >= low.value - 1e-12
