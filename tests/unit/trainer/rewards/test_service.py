"""A slow, overloaded, unavailable, restarting and failing service; a missing score is never 0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from services.combine import combine
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import (
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    SettingsError,
    SynodError,
    Unavailable,
    UnknownScorer,
)
from synod.retry import RetryPolicy
from tests.unit.trainer.reward_services import WIRE, Judge, serve
from trainer.data.source import GENEVAL
from trainer.errors import RewardServiceUnavailable
from trainer.rewards import service as rewards
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.settings import RewardSettings
from trainer.types import Reward, RewardSpec

Answer = Callable[[ScoreRequest], ScoreResponse | SynodError | httpx.Response]
LOST = ScoreFailure("replica_lost", "the replica died", retryable=True)
BAD = ScoreFailure("bad_image", "not an image")
SYNC_R1 = RewardSpec(ensemble="sync_r1")
LATE = ScoreFailure("deadline_exceeded", "too slow", retryable=True)


def items(*levels: int) -> list[ScoreItem]:
    return [ScoreItem(np.full((2, 2, 3), level, np.uint8), "a photo") for level in levels]


def level(item: ScoreItem) -> int:
    return int(item.pixels()[0, 0, 0])


def respond(request: ScoreRequest, outcome: Callable[[ScoreItem], Outcome]) -> ScoreResponse:
    """Each item's outcome for every scorer; an ensemble adds `tier` = 1 and a reward of outcome / 2."""
    results = []
    for item in request.items:
        found = outcome(item)
        scores: dict[str, Outcome] = dict.fromkeys(request.scorers, found)
        reward = None
        if request.ensemble is not None:
            assert request.ensemble == "sync_r1"
            scores = {"tier": Score(1.0), "ber": found}
            reward = Score(found.value / 2) if isinstance(found, Score) else found
        results.append(ItemResult(scores, reward))
    return ScoreResponse(tuple(results), request.request_id or "")


def measured(request: ScoreRequest) -> ScoreResponse:
    return respond(request, lambda item: Score(level(item) / 100))


def to_http(answer: ScoreResponse | SynodError | httpx.Response) -> httpx.Response:
    if isinstance(answer, httpx.Response):
        return answer
    if isinstance(answer, SynodError):
        return httpx.Response(
            answer.http_status, content=WIRE.encode_error(answer), headers={"content-type": WIRE.content_type}
        )
    return httpx.Response(200, content=WIRE.encode_response(answer), headers={"content-type": WIRE.content_type})


class Said(list[str]):
    """The log messages."""

    def count_of(self, part: str) -> int:
        return sum(part in line for line in self)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, said: Said) -> Iterator[Callable[..., RewardService]]:
    """`service(answer, answer, ..)`: one answer for each request, the last one repeated."""
    monkeypatch.setattr(rewards, "BACKOFF", RetryPolicy(base_s=0.001, max_s=0.03))
    made: list[RewardService] = []

    def make(*answers: Answer, asked: list[ScoreRequest] | None = None, **settings: Any) -> RewardService:
        left, lock = list(answers), threading.Lock()

        def handle(http: httpx.Request) -> httpx.Response:
            request = WIRE.decode_request(http.content)
            with lock:
                if asked is not None:
                    asked.append(request)
                answer = left.pop(0) if len(left) > 1 else left[0]
            return to_http(answer(request))

        made.append(
            RewardService(
                RewardSettings(**{"patience_s": 5.0, "ensemble": "sync_r1", "surrogate": "ber"} | settings),
                transport=httpx.MockTransport(handle),
                log=said.append,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def fail(error: SynodError) -> Answer:
    return lambda request: error


def broken(kind: type[httpx.RequestError]) -> Answer:
    def answer(request: ScoreRequest) -> ScoreResponse:
        raise kind("planted")

    return answer


def test_previews_are_scored_by_the_surrogate(service: Callable[..., RewardService], said: Said) -> None:
    asked: list[ScoreRequest] = []
    found = service(measured, asked=asked).submit_previews(items(30, 10, 20)).result(10)
    assert [reward.value for reward in found] == [0.3, 0.1, 0.2]
    assert [dict(reward.components) for reward in found] == [{"ber": 0.3}, {"ber": 0.1}, {"ber": 0.2}]
    assert [(request.scorers, request.ensemble) for request in asked] == [(("ber",), None)]
    assert said == []


@pytest.mark.parametrize(
    ("spec", "level", "reward", "request_of"),
    [
        (SYNC_R1, 30, Reward(0.15, {"tier": 1.0, "ber": 0.3}), ((), "sync_r1")),
        (GENEVAL, 0, Reward(0.0, {"geneval": 0.0}), (("geneval",), None)),  # a measured 0 is a 0
        (RewardSpec({"a": 0.5, "b": 2.0}), 40, Reward(1.0, {"a": 0.4, "b": 0.4}), (("a", "b"), None)),
        (RewardSpec({"a": 1.0, "b": -1.5}), 40, Reward(-0.2, {"a": 0.4, "b": 0.4}), (("a", "b"), None)),  # not clipped
        (RewardSpec({"a": 1.0, "b": 0.0}), 40, Reward(0.4, {"a": 0.4, "b": 0.4}), (("a", "b"), None)),
    ],
)
def test_a_reward_asks_its_scorers_or_ensemble(
    service: Callable[..., RewardService], spec: RewardSpec, level: int, reward: Reward, request_of: object
) -> None:
    asked: list[ScoreRequest] = []
    (found,) = service(measured, asked=asked).submit(items(level), spec).result(10)
    assert found.value == pytest.approx(reward.value)
    assert (found.components, found.failure) == (reward.components, None)
    assert [(request.scorers, request.ensemble) for request in asked] == [request_of]


def test_no_items_send_no_request(service: Callable[..., RewardService]) -> None:
    assert service(fail(UnknownScorer("never asked"))).submit_previews([]).result(10) == []


@pytest.mark.parametrize(
    "trouble",
    [
        broken(httpx.ConnectError),
        broken(httpx.ReadError),
        broken(httpx.RemoteProtocolError),
        fail(Unavailable("starting")),
        fail(Overloaded("full")),
        lambda request: httpx.Response(502, content=b"<html>bad gateway"),
    ],
)
def test_an_unavailable_service_is_retried(service: Callable[..., RewardService], said: Said, trouble: Answer) -> None:
    found = service(trouble, trouble, trouble, measured).submit(items(50), SYNC_R1).result(10)
    assert [reward.value for reward in found] == [0.25]
    assert said.count_of("waiting up to 5 s for the reward service") == 1
    assert said.count_of("has recovered") == 1
    assert len(said) == 2


def test_waiting_ends_after_patience_s(service: Callable[..., RewardService], said: Said) -> None:
    future = service(broken(httpx.ConnectError), patience_s=0.02).submit(items(50), SYNC_R1)
    with pytest.raises(
        RewardServiceUnavailable, match=r"was unavailable for .* patience_s is 0\.02\. Start it \(`make up`\)"
    ):
        future.result(10)
    assert said.count_of("waiting") == 1


@pytest.mark.parametrize(
    ("trouble", "code", "requests"),
    [
        (broken(httpx.ReadTimeout), "deadline_exceeded", 1),
        (fail(DeadlineExceeded("too slow")), "deadline_exceeded", 1),
        (fail(SynodError("a bug")), "internal", 1),
        (lambda request: respond(request, lambda item: LATE), "deadline_exceeded", 1),
        (lambda request: respond(request, lambda item: LOST), "replica_lost", rewards.ITEM_RETRIES + 1),
    ],
)
def test_a_failure_that_does_not_recover_is_masked(
    service: Callable[..., RewardService], said: Said, trouble: Answer, code: str, requests: int
) -> None:
    asked: list[ScoreRequest] = []
    found = service(trouble, asked=asked).submit_previews(items(1, 2)).result(10)
    assert [(reward.value, reward.failure and reward.failure.code) for reward in found] == [(None, code)] * 2
    assert len(asked) == requests
    assert len(said) == said.count_of(f"2 of 2 scores are missing, first: {code}") == 1


@pytest.mark.parametrize("error", [UnknownScorer("no ensemble 'sync_r1'"), PayloadTooLarge("too many")])
def test_a_wrong_request_is_raised(service: Callable[..., RewardService], error: SynodError) -> None:
    with pytest.raises(type(error), match=str(error)):
        service(fail(error)).submit(items(1), SYNC_R1).result(10)


def test_a_failed_item_masks_only_itself(service: Callable[..., RewardService], said: Said) -> None:
    asked: list[ScoreRequest] = []
    one = service(lambda r: respond(r, lambda item: BAD if level(item) == 2 else Score(level(item) / 10)), asked=asked)
    found = one.submit(items(1, 2, 3), SYNC_R1).result(10)
    assert [reward.value for reward in found] == [0.05, None, 0.15]
    assert found[1] == Reward(None, {"tier": 1.0}, BAD)  # its other component is kept
    assert len(asked) == 1  # a bad image stays one
    assert said == ["1 of 3 scores are missing, first: bad_image: not an image"]


def test_a_lost_item_is_retried_alone(service: Callable[..., RewardService], said: Said) -> None:
    asked: list[ScoreRequest] = []
    flaky = [
        lambda r: respond(r, lambda item: LOST if level(item) > 1 else Score(0.1)),
        lambda r: respond(r, lambda item: LOST if level(item) > 2 else Score(0.2)),
        lambda r: respond(r, lambda item: Score(0.3)),
    ]
    found = service(*flaky, asked=asked).submit_previews(items(3, 1, 2)).result(10)
    assert [reward.value for reward in found] == [0.3, 0.1, 0.2]
    assert [[level(item) for item in request.items] for request in asked] == [[3, 1, 2], [3, 2], [3]]
    assert said == []


def test_close_cancels_pending_requests(service: Callable[..., RewardService], said: Said) -> None:
    """Those that wait for the service end, those that wait for a thread are cancelled, and no thread is left."""
    one = service(broken(httpx.ConnectError), patience_s=600.0)
    futures = [one.submit(items(1), SYNC_R1) for _ in range(rewards.THREADS + 1)]
    futures += [one.submit_previews(items(1)) for _ in range(rewards.THREADS + 1)]
    while not said:
        assert not any(future.done() for future in futures)
    one.close()
    assert {type(future.exception(10)) for future in futures if not future.cancelled()} == {RewardServiceUnavailable}
    assert sum(future.cancelled() for future in futures) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("previews", "rewards"))]


def test_previews_do_not_wait_behind_rewards(service: Callable[..., RewardService]) -> None:
    """Every thread for rewards waits for an answer that comes after the previews' scores."""
    answered = threading.Event()

    def answer(request: ScoreRequest) -> ScoreResponse:
        assert request.scorers == ("ber",) or answered.wait(60)
        return measured(request)

    one = service(answer)
    pending = [one.submit(items(1), SYNC_R1) for _ in range(rewards.THREADS + 1)]
    try:
        assert one.submit_previews(items(50)).result(60)[0].value == 0.5
        assert not any(future.done() for future in pending)
    finally:
        answered.set()
    assert [future.result(60)[0].value for future in pending] == [0.005] * len(pending)


def test_training_continues_after_a_service_restart(said: Said) -> None:
    with serve(Judge()) as url:
        service = RewardService(RewardSettings(ensemble="sync_r1", url=url, patience_s=60), log=said.append)
        service.wait_ready()
        assert service.submit_previews(items(51)).result(10)[0].value == 0.2
        assert said == []
    future = service.submit(items(102), SYNC_R1)
    while not said:
        assert not future.done()
    with serve(Judge(), port=int(url.rpartition(":")[2])):
        assert future.result(30)[0].value == 0.4
    assert said.count_of("waiting") == said.count_of("has recovered") == 1
    service.close()


def test_wait_ready_names_what_is_missing(said: Said) -> None:
    body = b'{"scorers": {"ber": {"ready": false, "reason": "loading"}}}'
    transport = httpx.MockTransport(lambda request: httpx.Response(503, content=body))
    service = RewardService(RewardSettings(ensemble="sync_r1", patience_s=0.3), transport=transport, log=said.append)
    with pytest.raises(RewardServiceUnavailable, match=r"ber \(loading\)"):
        service.wait_ready()
    assert said.count_of("ber (loading)") == 1
    service.close()


# -- what is served ---------------------------------------------------------------------------------------------------

SERVED = {"scorers": [{"name": "ber", "needs": ["image", "prompt"]}], "ensembles": {"t2i": {"weights": {"ber": 1.0}}}}
BER = Wanted(RewardSpec({"ber": 1.0}), frozenset({"image", "prompt"}))


def catalogue(said: Said, body: object = SERVED) -> RewardService:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    return RewardService(RewardSettings(ensemble="t2i"), transport=transport, log=said.append)


def test_a_reward_that_is_not_served_is_refused(said: Said) -> None:
    wrong = replace(BER, spec=RewardSpec({"bar": 1.0}))
    with closing(catalogue(said)) as service:
        service.check_served([BER, replace(BER, spec=RewardSpec(ensemble="t2i"))])
        with pytest.raises(SettingsError) as caught:
            service.check_served([BER, wrong, replace(wrong, role="surrogate")])
    assert str(caught.value).splitlines()[:3] == [
        "[trainer.rewards] does not fit the service at http://127.0.0.1:8000:",
        "  scorer 'bar' is not served; served are ber",
        "  surrogate 'bar' is not served; served are ber",
    ]
    assert 'threshold = "none") no surrogate is needed' in str(caught.value)
    assert said == []


def test_a_late_catalogue_is_read_again(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so a late score, which is masked."""
    monkeypatch.setattr(rewards, "BACKOFF", RetryPolicy(base_s=0.001, max_s=0.03))
    late = iter([True, False, False])

    def handle(http: httpx.Request) -> httpx.Response:
        if next(late):
            raise httpx.ReadTimeout("planted")
        return httpx.Response(200, json=SERVED)

    reward_settings = RewardSettings(ensemble="t2i")
    with closing(RewardService(reward_settings, transport=httpx.MockTransport(handle), log=said.append)) as service:
        service.check_served([BER])
    assert said.count_of("waiting") == said.count_of("has recovered") == 1


def test_a_service_without_ensembles_is_read(said: Said) -> None:
    with closing(catalogue(said, {"scorers": [{"name": "ber"}]})) as service:
        service.check_served([BER])
        with pytest.raises(SettingsError, match="ensemble 't2i' is not served; served are none"):
            service.check_served([replace(BER, spec=RewardSpec(ensemble="t2i"))])
    with (
        closing(catalogue(said, {"scorers": [], "ensembles": []})) as service,
        pytest.raises(SynodError, match="no table of ensembles; check that the URL"),
    ):
        service.check_served([BER])


def test_a_catalogue_is_awaited(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "BACKOFF", RetryPolicy(base_s=0.001, max_s=0.03))
    answers = [httpx.Response(503), httpx.Response(200, json=SERVED)]
    transport = httpx.MockTransport(lambda request: answers.pop(0) if len(answers) > 1 else answers[0])
    with closing(RewardService(RewardSettings(ensemble="t2i"), transport=transport, log=said.append)) as service:
        service.check_served([BER])
    assert said.count_of("waiting") == said.count_of("has recovered") == 1


# -- several scorers --------------------------------------------------------------------------------------------------


def of_scorers(request: ScoreRequest, **outcomes: Outcome) -> ScoreResponse:
    results = [ItemResult(dict(outcomes)) for _ in request.items]
    return ScoreResponse(tuple(results), request.request_id or "")


def test_one_missing_score_masks_the_reward(service: Callable[..., RewardService], said: Said) -> None:
    spec = RewardSpec({"a": 1.0, "b": 1.0, "c": 1.0})
    answer = lambda request: of_scorers(request, a=Score(0.5), b=LOST, c=BAD)  # noqa: E731
    asked: list[ScoreRequest] = []
    (found,) = service(answer, asked=asked).submit(items(1), spec).result(10)
    assert (found.value, found.components) == (None, {"a": 0.5})
    assert found.failure == ScoreFailure("bad_image", "c: not an image")
    assert len(asked) == 1  # a bad image stays one, so the lost replica's score would not help
    assert said == ["1 of 1 scores are missing, first: bad_image: c: not an image"]


def test_a_scorer_of_weight_zero_masks_nothing(service: Callable[..., RewardService], said: Said) -> None:
    answer = lambda request: of_scorers(request, a=Score(0.5), b=BAD)  # noqa: E731
    (found,) = service(answer).submit(items(1), RewardSpec({"a": 2.0, "b": 0.0})).result(10)
    assert found == Reward(1.0, {"a": 0.5})
    assert said == []


def test_an_infinite_sum_is_a_failure(service: Callable[..., RewardService]) -> None:
    (found,) = service(measured).submit(items(90), RewardSpec({"a": 1.7e308, "b": 1.7e308})).result(10)
    assert found.value is None
    assert found.failure is not None
    assert "the weighted sum of a, b is inf; give smaller weights" in found.failure.message


def test_a_weighted_sum_is_rounded_once(service: Callable[..., RewardService]) -> None:
    """.1 + .2 + .3 is .6000000000000001 if each sum is rounded."""
    (found,) = service(measured).submit(items(100), RewardSpec({"a": 0.1, "b": 0.2, "c": 0.3})).result(10)
    assert found.value == 0.6


# -- the terms that were fixed before drawing -------------------------------------------------------------------------

NEEDS = {"tier": ["reasoning"], "ber": ["image", "prompt"]}


def fixed_terms(answer: Any, spec: RewardSpec, *, checked: bool = True) -> Reward:
    """The reward that a service gives whose catalogue is NEEDS and whose response to one item is `answer`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            scorers = [{"name": name, "needs": needs} for name, needs in NEEDS.items()]
            return httpx.Response(200, json={"scorers": scorers, "ensembles": {"sync_r1": {"by_kind": {}}}})
        response = ScoreResponse((answer,), WIRE.decode_request(request.content).request_id or "")
        return httpx.Response(200, content=WIRE.encode_response(response), headers={"content-type": WIRE.content_type})

    transport = httpx.MockTransport(handle)
    with closing(RewardService(RewardSettings(ensemble="sync_r1"), transport=transport, log=print)) as service:
        if checked:
            service.check_served([Wanted(spec, frozenset({"image", "prompt", "reasoning", "concept"}))])
        return service.submit(items(1), spec).result()[0]


COMPONENTS = {
    "tier": {"value": 0.5, "weight": 0.4, "contribution": 0.2},
    "ber": {"value": 0.9, "weight": 0.3, "contribution": 0.27},
}
SCORES: dict[str, Outcome] = {"tier": Score(0.5), "ber": Score(0.9)}


@pytest.mark.parametrize(
    ("spec", "answer", "expected"),
    [
        (SYNC_R1, ItemResult(SCORES, Score(0.47, {"components": COMPONENTS})), {"tier": 0.2}),
        (SYNC_R1, ItemResult(SCORES, Score(0.47)), None),  # a service that does not say
        (SYNC_R1, ItemResult(SCORES, Score(0.47, {"components": {"tier": 0.2}})), None),
        (RewardSpec({"tier": 0.5, "ber": -1.0}), ItemResult(SCORES), {"tier": 0.25}),
        (RewardSpec({"tier": 0.0, "ber": 1.0}), ItemResult(SCORES), {}),
    ],
)
def test_terms_of_text_scorers_are_fixed(
    spec: RewardSpec, answer: ItemResult, expected: dict[str, float] | None
) -> None:
    found = fixed_terms(answer, spec)
    assert found.fixed == expected
    assert found.image_part == (
        None if expected is None else pytest.approx((found.value or 0) - sum(expected.values()))
    )
    unchecked = fixed_terms(answer, spec, checked=False)
    assert (unchecked.fixed, unchecked.image_part) == (None, None)


@pytest.mark.parametrize(
    ("detail", "official"),
    [({"official": True, "soft": 0.25}, 1.0), ({"official": False}, 0.0), ({"official": "yes"}, None), ({}, None)],
)
def test_the_official_verdict_is_read_from_a_score(detail: dict[str, Any], official: float | None) -> None:
    scores: dict[str, Outcome] = {"ber": Score(0.9), "tier": Score(0.25, detail)}
    for spec, reward in ((RewardSpec({"tier": 1.0, "ber": 0.0}), None), (SYNC_R1, Score(0.47))):
        found = fixed_terms(ItemResult(scores, reward), spec)
        assert found.official == official
        assert found.value == (0.25 if reward is None else 0.47)


def test_contributions_are_those_of_the_services_own_detail() -> None:
    reward = combine({"tier": Score(0.5), "ber": Score(-0.9)}, {"tier": 0.4, "ber": 0.3}, clip_at_zero=True)
    assert isinstance(reward, Score)
    assert fixed_terms(ItemResult(SCORES, reward), SYNC_R1).fixed == {"tier": 0.2}
    assert rewards._contributions(reward) == {"tier": 0.2, "ber": 0.0}
