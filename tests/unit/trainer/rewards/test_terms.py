"""The terms of a reward: each result is scored by its own scorers, and their weighted scores are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing

import httpx
import numpy as np
import pytest

from services.combine import combine
from synod.contracts import ItemResult, Outcome, Reasoning, Score, ScoreFailure, ScoreItem, ScoreResponse
from tests.unit.trainer.reward_services import WIRE, answered
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.rewards.terms import Items, add, submit_terms
from trainer.settings import RewardSettings
from trainer.types import Reward, RewardSpec

IMAGE = ScoreItem(
    np.zeros((2, 2, 3), np.uint8), "a photo", reasoning=Reasoning("<answer>Yes</answer>", ("Yes",), (1.0,))
)
ANSWER = ScoreItem(None, "a photo", reasoning=IMAGE.reasoning)
BOTH: Items = {"image": IMAGE, "answer": ANSWER}
COT = RewardSpec({"geneval": 1.0, "format": 0.5, "hps": 0.0}, of={"format": "answer"})
NEEDS = {"geneval": ["image", "geneval"], "format": ["reasoning"], "hps": ["image"]}
GOOD: Mapping[str, Outcome] = {"geneval": Score(0.25, {"official": 1.0}), "format": Score(1.0), "hps": Score(9.0)}
GONE = ScoreFailure("bad_image", "planted")


def scored(reward: RewardSpec, scores: Mapping[str, Outcome]) -> tuple[Reward, list[tuple[tuple[str, ...], bool]]]:
    """The reward of one rollout from a service with these scores; of each request its scorers, and if on images."""
    asked = []

    def handle(http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            served = [{"name": name, "needs": needs} for name, needs in NEEDS.items()]
            return httpx.Response(200, json={"scorers": served, "ensembles": {}})
        request = WIRE.decode_request(http.content)
        asked.append((request.scorers, request.items[0].image is not None))
        results = tuple(ItemResult({name: scores[name] for name in request.scorers}) for _ in request.items)
        content = WIRE.encode_response(ScoreResponse(results, request.request_id or ""))
        return httpx.Response(200, content=content, headers={"content-type": WIRE.content_type})

    settings, transport = RewardSettings(scorers={"geneval": 1.0}), httpx.MockTransport(handle)
    with closing(RewardService(settings, transport=transport, log=lambda message: None)) as service:
        service.check_served([Wanted(COT, frozenset({"image", "prompt", "reasoning", "geneval"}))])
        (found,) = submit_terms(service, [BOTH], reward).result(10)
    return found, sorted(asked)


def test_each_result_is_scored_by_its_own_scorers() -> None:
    found, asked = scored(COT, GOOD)
    assert asked == [(("format",), False), (("geneval", "hps"), True)]
    assert found == Reward(0.75, {"geneval": 0.25, "hps": 9.0, "format": 1.0}, fixed={"format": 0.5}, official=1.0)
    assert found.image_part == 0.25


@pytest.mark.parametrize("lost", ["geneval", "format"])
def test_a_missing_term_masks_the_rollout(lost: str) -> None:
    found, _ = scored(COT, {**GOOD, lost: GONE})
    assert found.value is None
    assert found.failure is not None
    assert (found.failure.code, lost in found.failure.message) == ("bad_image", True)
    assert set(found.components) == set(GOOD) - {lost}


def test_a_watched_term_changes_no_reward() -> None:
    assert scored(COT, {**GOOD, "hps": GONE})[0].value == scored(COT, GOOD)[0].value == 0.75


def test_an_edit_in_the_wrong_direction_costs() -> None:
    scores = {"clip_direction": Score(-0.3), "clip_i": Score(0.9)}
    weights = {"clip_direction": 4.0, "clip_i": 1.0}
    found, _ = scored(RewardSpec(weights), scores)
    assert found.value == pytest.approx(-0.3)  # 4 * -.3 + .9, by hand
    clipped = combine(scores, weights, clip_at_zero=True)
    assert isinstance(clipped, Score)
    assert clipped.value == pytest.approx(0.9)  # so that this edit would cost nothing


def test_the_sum_keeps_a_failure_that_no_retry_fixes() -> None:
    late, bad = ScoreFailure("replica_lost", "one", retryable=True), ScoreFailure("bad_image", "two")
    parts = [Reward(None, {"a": 1.0}, late), Reward(None, {}, bad), Reward(1.0, {"b": 2.0})]
    assert add(parts) == Reward(None, {"a": 1.0, "b": 2.0}, bad)
    assert add([Reward(1.0, fixed={}), Reward(2.0)]).fixed is None  # one part's terms are not known


class Pending:
    """A reward service whose answers are set by hand."""

    def __init__(self) -> None:
        self.asked: list[Future[list[Reward]]] = []

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return answered([])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        self.asked.append(Future())
        return self.asked[-1]


def test_the_sum_waits_for_all_and_raises_what_one_raises() -> None:
    service = Pending()
    sums = submit_terms(service, [BOTH], COT)
    image, answer = service.asked
    answer.set_result([Reward(1.0)])
    assert not sums.done()
    image.set_result([Reward(2.0)])
    assert [one.value for one in sums.result(0)] == [3.0]
    service = Pending()
    sums = submit_terms(service, [BOTH], COT)
    service.asked[0].set_exception(ValueError("planted"))
    service.asked[1].cancel()
    with pytest.raises(ValueError, match="planted"):
        sums.result(0)
