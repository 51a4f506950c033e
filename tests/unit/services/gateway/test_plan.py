"""A plan names the scorers and weights of each item; invalid requests are refused."""

from __future__ import annotations

import pytest

from services.gateway.core import Plan, plan_request
from services.gateway.validate import validate
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import (
    About,
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    Reasoning,
    Score,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
)
from synod.errors import InvalidRequest, PayloadTooLarge, UnknownScorer

ENSEMBLES = {
    "council": EnsembleSettings(by_kind={"person": {"a": 0.6, "face": 0.4}, "animal": {"a": 1.0, "face": 0.0}}),
    "lenient": EnsembleSettings(weights={"a": 0.5, "b": 0.5}, missing="renormalise"),
    "mixed": EnsembleSettings(weights={"b": 1.0}, by_kind={"person": {"face": 1.0}}, clip_at_zero=True),
}
LIMITS = LimitSettings(max_items=3)
ITEM = ScoreItem(prompt="hello")


def plan(request: ScoreRequest) -> Plan:
    validate(request, ("a", "b", "face"), ENSEMBLES, LIMITS)
    return plan_request(request, ENSEMBLES)


def test_item_needs_named_then_weighted_scorers() -> None:
    items = (ScoreItem(concept=Concept("person")), ScoreItem(concept=Concept("animal")), ScoreItem())
    made = plan(ScoreRequest(items, ("b", "a"), "council"))
    assert made.scorers_of == (("b", "a", "face"), ("b", "a"), ("b", "a"))
    assert isinstance(made.weights[2], ScoreFailure)


def test_weights_override_the_ensemble() -> None:
    made = plan(ScoreRequest((ITEM,), (), "council", {"b": 2.0, "face": 0.0}))
    assert made.scorers_of == (("b",),)
    reward = made.reward(0, {"b": Score(0.25)})
    assert isinstance(reward, Score)
    assert reward.value == 0.5


def test_missing_policy_holds_for_overriding_weights() -> None:
    made = plan(ScoreRequest((ITEM,), (), "lenient", {"a": 1.0, "b": 1.0}))
    reward = made.reward(0, {"a": Score(0.5), "b": ScoreFailure("bad_image", "no")})
    assert isinstance(reward, Score)
    assert reward.value == pytest.approx(1.0)  # 0.5 at the whole weight of 2


def test_by_kind_replaces_flat_weights_of_its_kinds() -> None:
    items = (ITEM, ScoreItem(concept=Concept("animal")), ScoreItem(concept=Concept("person")))
    assert plan(ScoreRequest(items, (), "mixed")).scorers_of == (("b",), ("b",), ("face",))


@pytest.mark.parametrize(
    ("ensemble", "weights", "expected"),
    [("mixed", None, 0.0), ("mixed", {"b": 2.0}, 0.0), ("council", {"b": 2.0}, -3.0), (None, {"b": 2.0}, -3.0)],
)
def test_clipping_is_the_ensembles_choice(
    ensemble: str | None, weights: dict[str, float] | None, expected: float
) -> None:
    reward = plan(ScoreRequest((ITEM,), (), ensemble, weights)).reward(0, {"b": Score(-1.5)})
    assert isinstance(reward, Score)
    assert reward.value == expected


def test_request_without_ensemble_has_no_reward() -> None:
    assert plan(ScoreRequest((ITEM,), ("a",))).reward(0, {"a": Score(1.0)}) is None


FULL = "x" * 8192
LONG = FULL + "x"
GENEVAL = GenEvalMetadata("counting", (GenEvalClause("cat", 1),) * 64, (GenEvalClause("dog", 1),))
ASKED = GenEvalMetadata("geneval2", (), (), (("q", "Yes"),) * 65)
KNOWN = Concept("person", about=About(facts=("a fact",) * 65))
LONG_ASKED = GenEvalMetadata("geneval2", (), (), ((LONG, "Yes"),))


@pytest.mark.parametrize(
    ("request_", "error", "word"),
    [
        (ScoreRequest((), ("a",)), InvalidRequest, "empty"),
        (ScoreRequest((ITEM,)), InvalidRequest, "a, b, face"),
        (ScoreRequest((ITEM,) * 4, ("a",)), PayloadTooLarge, "the request has 4 items; the limit is 3 ([limits]"),
        (
            ScoreRequest((ScoreItem(prompt=LONG),), ("a",)),
            PayloadTooLarge,
            "items[0].prompt has 8,193 characters; the limit is 8,192. Shorten it",
        ),
        (ScoreRequest((ITEM, ScoreItem(source_prompt=LONG)), ("a",)), PayloadTooLarge, "items[1].source_prompt"),
        (
            ScoreRequest((ITEM, ScoreItem(references=(b"",) * 17)), ("a",)),
            PayloadTooLarge,
            "references has 17 images; the limit is 16. Send fewer",
        ),
        (ScoreRequest((ScoreItem(reasoning=Reasoning(LONG, (), ())),), ("a",)), PayloadTooLarge, "reasoning.text"),
        (
            ScoreRequest((ScoreItem(reasoning=Reasoning("", ("s",) * 65, (1.0,) * 65)),), ("a",)),
            PayloadTooLarge,
            "reasoning.segments",
        ),
        (ScoreRequest((ScoreItem(reasoning=Reasoning("", (LONG,), (1.0,))),), ("a",)), PayloadTooLarge, "segments[0]"),
        (
            ScoreRequest((ScoreItem(geneval=GENEVAL),), ("a",)),
            PayloadTooLarge,
            "items[0].geneval has 65 clauses in include",
        ),
        (
            ScoreRequest((ScoreItem(geneval=ASKED),), ("a",)),
            PayloadTooLarge,
            "items[0].geneval.vqa_list has 65 questions",
        ),
        (ScoreRequest((ScoreItem(geneval=LONG_ASKED),), ("a",)), PayloadTooLarge, "items[0].geneval.vqa_list[0][0]"),
        (ScoreRequest((ScoreItem(concept=KNOWN),), ("a",)), PayloadTooLarge, "items[0].concept.about.facts has 65"),
        (ScoreRequest((ITEM,), ("a", "b", "a", "b")), InvalidRequest, "has 4 names, but the service has 3"),
        (ScoreRequest((ITEM,), ("a", "b", "a", "z")), UnknownScorer, "'z'"),
        (ScoreRequest((ITEM,), ("z",)), UnknownScorer, "'z'"),
        (ScoreRequest((ITEM,), (), None, {"z": 1.0}), UnknownScorer, "'z'"),
        (ScoreRequest((ITEM,), (), "z"), UnknownScorer, "council, lenient, mixed"),
        (ScoreRequest((ITEM,), (), None, {"a": float("nan")}), InvalidRequest, "weights.a is nan"),
        (ScoreRequest((ITEM,), (), None, {"a": float("inf")}), InvalidRequest, "weights.a is inf"),
        (ScoreRequest((ITEM,), (), None, {"a": -0.5}), InvalidRequest, "-0.5"),
        (ScoreRequest((ITEM,), (), None, {"a": 0.0}), InvalidRequest, "above 0"),
        (ScoreRequest((ITEM,), (), None, {}), InvalidRequest, "above 0"),
        (ScoreRequest((ITEM,), ("a",), timeout_ms=0), InvalidRequest, "1..600000"),
        (ScoreRequest((ITEM,), ("a",), timeout_ms=600_001), InvalidRequest, "600001"),
        (ScoreRequest((ITEM,), ("a",), request_id="r" * 257), PayloadTooLarge, "request_id has 257 characters"),
    ],
)
def test_invalid_requests_are_refused(request_: ScoreRequest, error: type[Exception], word: str) -> None:
    with pytest.raises(error) as caught:
        plan(request_)
    assert word in str(caught.value)


def test_request_at_the_limits_is_accepted() -> None:
    concept = Concept("person", about=About(FULL, (FULL,) * 64))
    full = ScoreItem(None, FULL, (b"",) * 16, Reasoning(FULL, (FULL,) * 64, (1.0,) * 64), concept=concept)
    request = ScoreRequest((full,) * 3, ("a", "a", "b"), timeout_ms=600_000, request_id="r" * 256)
    assert plan(request).scorers_of == (("a", "b"),) * 3
