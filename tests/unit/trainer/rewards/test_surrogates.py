"""Surrogates of a reward's own terms, against the service's own planning and combining."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from services.gateway.core import plan_request
from services.settings import EnsembleSettings
from synod.contracts import Concept, ItemResult, Outcome, Reasoning, Score, ScoreFailure, ScoreItem, ScoreResponse
from synod.errors import SettingsError
from tests.unit.trainer.reward_services import WIRE
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.settings import RewardSettings
from trainer.types import Reward, RewardSpec

NEEDS = {"tier": ["reasoning"], "polite": ["reasoning"], "ber": ["image", "prompt"], "geneval": ["image", "geneval"]}
WEIGHTS = {"tier": 0.25, "ber": 0.5, "polite": 0.125}
BY_KIND = {"animal": WEIGHTS, "person": {"tier": 0.5, "ber": 0.5}}
ENSEMBLE = RewardSpec(ensemble="e")
SCORES: Mapping[str, Outcome] = {"tier": Score(0.5), "polite": Score(-1.0), "ber": Score(0.75), "geneval": Score(0.25)}
LOST = ScoreFailure("bad_image", "planted")
DOG = Concept("animal", "dog", "<bo>")
CLEAR = ScoreItem(np.zeros((2, 2, 3), np.uint8), "a photo", reasoning=Reasoning("red", ("red",), (1.0,)), concept=DOG)
ANSWER = replace(CLEAR, image=None)
INPUTS = frozenset({"image", "prompt", "reasoning", "concept"})


def score(
    item: ScoreItem, reward: RewardSpec, scores: Mapping[str, Outcome] = SCORES, missing: str = "fail", **clip: bool
) -> Reward:
    """The surrogate score of one item from a service that scores only what an item has the inputs for."""
    ensemble = EnsembleSettings.model_validate({"by_kind": BY_KIND, "missing": missing, **clip})

    def handle(http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            served = [{"name": name, "needs": needs} for name, needs in NEEDS.items()]
            catalogue = {"e": {"by_kind": BY_KIND, "missing": missing}}
            return httpx.Response(200, json={"scorers": served, "ensembles": catalogue})
        request = WIRE.decode_request(http.content)
        plan = plan_request(request, {"e": ensemble})
        for name in plan.scorers_of[0]:
            assert all(getattr(request.items[0], need) is not None for need in NEEDS[name]), name
        found = {name: scores[name] for name in plan.scorers_of[0]}
        response = ScoreResponse((ItemResult(found, plan.reward(0, found)),), request.request_id or "")
        return httpx.Response(200, content=WIRE.encode_response(response), headers={"content-type": WIRE.content_type})

    transport = httpx.MockTransport(handle)
    settings = RewardSettings(ensemble="e", surrogate="known")
    with closing(RewardService(settings, transport=transport, log=lambda message: None)) as service:
        service.check_served([Wanted(reward, INPUTS)])
        return service.submit_previews([item], reward).result(10)[0]


def test_known_terms_of_an_ensemble_by_hand() -> None:
    """.25 * .5 - .125 for an animal, clipped .125; the scorers of images are not asked."""
    assert score(ANSWER, ENSEMBLE).value == 0.0
    assert score(ANSWER, ENSEMBLE, clip_at_zero=True).value == 0.125
    person = replace(ANSWER, concept=replace(DOG, kind="person"))
    assert score(person, ENSEMBLE).value == 0.25


def test_known_terms_of_scorers_by_hand() -> None:
    assert score(ANSWER, RewardSpec({"tier": -2.0, "polite": 0.5, "ber": 9.0})).value == -1.5


def test_a_reward_without_known_terms_gives_no_score() -> None:
    """The service is not asked, and nothing has failed."""
    assert score(ANSWER, RewardSpec({"ber": 1.0})) == Reward(None)


def test_known_and_predicted_terms_add_up_to_the_reward() -> None:
    """.25 * .5 - .125 + .5 * .75, and the fixed part is that of "known"."""
    found = score(CLEAR, ENSEMBLE)
    assert found.value == 0.375
    assert sum((found.fixed or {}).values()) == score(ANSWER, ENSEMBLE).value
    assert score(CLEAR, RewardSpec(WEIGHTS)).value == 0.375


@pytest.mark.parametrize("missing", ["fail", "renormalise"])
@pytest.mark.parametrize("lost", ["tier", "ber"])
def test_a_missing_term_gives_no_score(lost: str, missing: str) -> None:
    """Also where the ensemble's rewards would count the other terms for more."""
    scores = {**SCORES, lost: LOST}
    assert score(CLEAR, ENSEMBLE, scores, missing).value is None
    assert score(CLEAR, RewardSpec(WEIGHTS), scores).value is None
    known = score(ANSWER, ENSEMBLE, scores, missing)
    assert (known.value is None) == (lost == "tier")


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        (
            RewardSpec({"ber": 1.0}),
            "surrogate 'known' needs a scorer that reads only text, but the reward has only ber",
        ),
        (ENSEMBLE, ""),
        (RewardSpec({"ber": 1.0, "tier": 1.0}), ""),
    ],
)
def test_known_needs_a_scorer_of_text(reward: RewardSpec, problem: str) -> None:
    served: dict[str, Any] = {
        "scorers": [{"name": name, "needs": needs} for name, needs in NEEDS.items()],
        "ensembles": {"e": {"by_kind": BY_KIND}},
    }
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=served))
    with closing(RewardService(RewardSettings(ensemble="e"), transport=transport)) as service:
        if not problem:
            service.check_served([Wanted(reward, INPUTS, known=True)])
            return
        with pytest.raises(SettingsError, match=problem):
            service.check_served([Wanted(reward, INPUTS, known=True)])
