"""Endpoints of other reward servers read their documented bodies and write their documented responses."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from services.gateway import app, auth
from services.gateway import compat as compatible
from services.gateway.core import Gateway
from services.settings import AuthSettings, CompatSettings, Settings
from synod.contracts import GenEvalClause, GenEvalMetadata, Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Overloaded
from synod.images import encode_png
from tests.unit.services.gateway.conftest import Refuse

TOKEN = "trainer-token-0123456789"
BOTH = CompatSettings(unirl=True, openrlhf="a")


def image(value: int) -> str:
    return b64encode(encode_png(np.full((2, 2, 3), value, np.uint8))).decode()


def turn(value: int, text: str = "a cat") -> dict[str, Any]:
    return {"text": text, "image_b64": image(value)}


def asked(*history: dict[str, Any], rewards: Sequence[str] = ("a",), **more: Any) -> dict[str, Any]:
    return {"history": list(history), "required_rewards": list(rewards), "metadata": None, **more}


def client(gateway: Gateway, compat: CompatSettings | None, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app.build(gateway, compat=compat, **options))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway, BOTH) as one:
        yield one


@pytest.fixture
def seen(backend: Any) -> list[ScoreItem]:
    """Return the list to which scorer 'a' appends the items of its first call."""
    seen: list[ScoreItem] = []

    def keep(items: Sequence[ScoreItem]) -> list[Outcome]:
        seen.extend(items)
        return [Score(0.5)] * len(items)

    backend.plan["a"] = [keep]
    return seen


async def unirl(http: httpx.AsyncClient, *requests: dict[str, Any], **more: Any) -> Any:
    answer = await http.post("/score", json={"protocol_version": "1", "requests": list(requests), **more})
    return answer.json() | {"status": answer.status_code}


async def test_unirl_scores_each_request_by_what_it_requires(http: httpx.AsyncClient, backend: Any) -> None:
    identity = {"request_id": "r", "sample_id": "s", "group_id": "g", "source_rank": 0, "policy_version": 7}
    body = await unirl(
        http,
        asked(turn(51), rewards=["a", "b"], idempotency_key="k", scorer_version=None, **identity),
        asked(turn(102), rewards=["a"]),
        asked(turn(153), rewards=["council"], metadata={"concept": {"kind": "animal"}, "policy_version": 7}),
    )
    assert body["status"] == 200
    assert body["protocol_version"] == "1"
    assert body["results"] == [
        {"a": {"score": pytest.approx(0.2)}, "b": {"score": pytest.approx(0.2)}},
        {"a": {"score": pytest.approx(0.4)}},
        {"council": {"score": pytest.approx(0.6)}},
    ]
    assert body["errors"] == [{}, {}, {}]
    assert body["identities"][0] == {**identity, "idempotency_key": "k", "scorer_version": None}
    assert sorted(backend.calls) == [("a", (0,)), ("a", (0,)), ("a", (0,)), ("b", (0,)), ("b", (0,))]


async def test_unirl_scores_requests_with_equal_rewards_together(http: httpx.AsyncClient, backend: Any) -> None:
    body = await unirl(http, asked(turn(0), rewards=["b", "a"]), asked(turn(255), rewards=["a", "b", "a"]))
    assert [one["a"]["score"] for one in body["results"]] == [0, 1]
    assert sorted(backend.calls) == [("a", (0, 1)), ("b", (0, 1))]


async def test_unirl_groups_do_not_compete_for_the_quota(gateway: Gateway) -> None:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[run]\ntoken = "{TOKEN}"\nmax_images = 4\n'})
    groups = [["a"], ["b"], ["a", "b"], ["face", "council"]]
    requests = [asked(turn(51), rewards=one, metadata={"concept": {"kind": "animal"}}) for one in groups * 2]
    async with client(gateway, BOTH, authenticator=authenticator) as http:
        answer = await http.post("/score", json={"requests": requests}, auth=("any", TOKEN))
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"] == [{name: {"score": pytest.approx(0.2)} for name in one} for one in groups * 2]


async def test_unirl_groups_share_one_timeout(
    http: httpx.AsyncClient, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatible, "DEFAULT_TIMEOUT_MS", 300)
    backend.plan |= {"a": [3600.0], "b": [3600.0]}
    body = await unirl(http, asked(turn(1), rewards=["a"]), asked(turn(1), rewards=["b"]))
    assert body["results"] == [{}, {}]
    assert [text[:17] for one in body["errors"] for text in one.values()] == ["deadline_exceeded"] * 2


async def test_unirl_history_and_metadata_become_item_fields(http: httpx.AsyncClient, seen: list[ScoreItem]) -> None:
    geneval = {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"}
    geneval["source_prompt"] = "a cup"
    await unirl(http, asked(turn(1, "old"), turn(2, "new"), metadata=geneval), asked(turn(3, "")))
    edited, bare = seen
    assert (edited.prompt, edited.pixels()[0, 0, 0], edited.reference_pixels()[0][0, 0, 0]) == ("new", 2, 1)
    assert edited.geneval is not None
    assert edited.geneval.include[0].class_name == "cup"
    assert edited.source_prompt == "a cup"
    assert (bare.prompt, bare.references) == (None, ())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {
                "tag": "color",
                "include": [{"class": "cup", "count": None, "color": "red", "size": None}],
                "exclude": None,
            },
            GenEvalMetadata("color", (GenEvalClause("cup", 1, "red"),)),
        ),
        (
            {"tag": None, "include": None, "vqa_list": [["Is there a cup?", "Yes"]], "skills": ["object"]},
            GenEvalMetadata("geneval2", (), (), (("Is there a cup?", "Yes"),)),
        ),
    ],
)
async def test_unirl_metadata_may_be_a_geneval_line(
    http: httpx.AsyncClient, seen: list[ScoreItem], metadata: dict[str, Any], expected: GenEvalMetadata
) -> None:
    await unirl(http, asked(turn(1, "a cup"), metadata=metadata))
    assert [item.geneval for item in seen] == [expected]


async def test_unirl_missing_score_is_an_error_of_its_item_only(http: httpx.AsyncClient, backend: Any) -> None:
    failed = ScoreFailure("deadline_exceeded", "late", True)
    backend.plan["b"] = [lambda items: [failed] * len(items)]
    bad = {"text": "a cat", "image_b64": b64encode(b"no image").decode()}
    body = await unirl(http, asked(turn(51), rewards=["a", "b"]), asked(bad, rewards=["a", "b"]))
    assert body["results"] == [{"a": {"score": pytest.approx(0.2)}}, {}]
    assert body["errors"][0] == {"b": "deadline_exceeded: late"}
    assert {text.partition(":")[0] for text in body["errors"][1].values()} == {"bad_image"}
    assert list(body["errors"][1]) == ["a", "b"]


async def test_unirl_lists_its_rewards(http: httpx.AsyncClient) -> None:
    assert (await http.get("/rewards")).json() == {"rewards": ["a", "b", "council", "face"]}
    health = (await http.get("/health")).json()
    assert (health["status"], sorted(health["rewards"])) == ("ok", ["a", "b", "council", "face"])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"requests": [asked(turn(1), rewards=["nobody"])]}, 404, "requests[0].required_rewards: no reward 'nobody'"),
        ({"requests": [asked()]}, 400, "requests[0]: 'history' is empty"),
        ({"requests": [asked({"text": "t", "video_path": "/etc/passwd"})]}, 400, "'video_path' is not supported"),
        ({"requests": [asked({"text": "t", "image_ipc": "x"})]}, 400, "'image_ipc' is not supported"),
        ({"requests": [asked(turn(1), scorer_version="2")]}, 400, "'scorer_version' cannot be pinned"),
        ({"requests": [asked(turn(1), metadata={"concept": 3})]}, 400, "requests[0].metadata.concept: a number"),
        ({"requests": [asked(turn(1))] * 9}, 413, "9 requests, the limit is 8"),
        ({"requests": [], "protocol_version": "2"}, 400, "protocol_version: '2'"),
        ({"requests": [], "grad_mode": True}, 400, "no gradients"),
        ({}, 400, "requests: missing"),
        ([], 400, "a list where an object belongs"),
    ],
)
async def test_unirl_refuses_what_it_cannot_score(
    http: httpx.AsyncClient, body: Any, status: int, message: str
) -> None:
    answer = await http.post("/score", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/score", "/openrlhf"])
async def test_pickle_and_invalid_bodies_are_refused(http: httpx.AsyncClient, backend: Any, path: str) -> None:
    pickled = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
    for body in (pickled, b"", b"{", b"[" * 100_00, b'{"requests": NaN}', b'{"a": 1, "a": 2}'):
        answer = await http.post(path, content=body)
        assert answer.status_code in (400, 413), body
    assert backend.calls == []


async def test_openrlhf_gets_a_reward_per_query(http: httpx.AsyncClient, backend: Any) -> None:
    labels = [{"image": image(51)}, json.dumps({"image": image(102)}), None]
    query = ["a cat, drawn", "a dog", {"image": image(153)}]
    answer = await http.post("/openrlhf", json={"query": query, "prompts": ["a cat", "a dog", "x"], "labels": labels})
    assert answer.json() == {"rewards": [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.6)]}
    assert backend.calls == [("a", (0, 1, 2))]


async def test_openrlhf_answer_becomes_the_reasoning_text(http: httpx.AsyncClient, seen: list[ScoreItem]) -> None:
    label = {"image": image(1), "reasoning": {"segments": ["hat"], "truth": [1]}}
    body = {"query": ["what? a hat"], "prompts": ["what?"], "labels": [label]}
    assert (await http.post("/openrlhf", json=body)).json() == {"rewards": [0.5]}
    assert seen[0].prompt == "what?"
    assert seen[0].reasoning is not None
    assert seen[0].reasoning.text == " a hat"


@pytest.mark.parametrize(
    ("failure", "status"),
    [(ScoreFailure("scorer_failed", "broke"), 500), (ScoreFailure("deadline_exceeded", "late", True), 504)],
)
async def test_openrlhf_missing_score_fails_the_response(
    http: httpx.AsyncClient, backend: Any, failure: ScoreFailure, status: int
) -> None:
    backend.plan["a"] = [lambda items: [Score(1.0), failure, failure]]
    query = [{"image": image(value)} for value in (1, 2, 3)]
    answer = await http.post("/openrlhf", json={"query": query, "prompts": [""] * 3, "labels": None})
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"items[1].a: {failure.message}; also missing: items[2].a"
    assert ("retry-after" in answer.headers) == failure.retryable


async def test_openrlhf_may_serve_an_ensemble(gateway: Gateway) -> None:
    label = {"image": image(51), "concept": {"kind": "animal"}}
    async with client(gateway, CompatSettings(openrlhf="council")) as http:
        body = {"query": ["q"], "prompts": ["p"], "labels": [label]}
        assert (await http.post("/openrlhf", json=body)).json() == {"rewards": [pytest.approx(0.2)]}
        missing = await http.post("/openrlhf", json={**body, "labels": [{"image": image(51)}]})
        assert (missing.status_code, missing.json()["error"]["code"]) == (422, "missing_input")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": ["a"], "prompts": []}, "1 query, 0 prompts, 1 labels"),
        ({"query": [], "prompts": []}, "query: empty"),
        ({"query": ["a"], "prompts": ["a"], "labels": ["{no"]}, "labels[0]: the text starts like a JSON object"),
        ({"query": ["a"], "prompts": ["a"], "labels": [{"photo": 1}]}, "labels[0].photo: unknown key"),
        ({"query": [{"url": "x"}], "prompts": ["a"]}, "query[0].image: missing"),
    ],
)
async def test_openrlhf_refuses_what_it_cannot_score(http: httpx.AsyncClient, body: Any, message: str) -> None:
    answer = await http.post("/openrlhf", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_overload_has_its_status_on_compat_endpoints(http: httpx.AsyncClient, refuse: Refuse) -> None:
    refuse(Overloaded("full", retry_after_s=2.0))
    for path, body in (("/score", {"requests": [asked(turn(1))]}), ("/openrlhf", {"query": ["a"], "prompts": ["a"]})):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


async def test_endpoints_exist_only_if_enabled(gateway: Gateway) -> None:
    for compat, paths in ((None, ["/score", "/openrlhf"]), (CompatSettings(unirl=True), ["/openrlhf"])):
        async with client(gateway, compat) as http:
            assert [(await http.post(path, json={})).status_code for path in paths] == [404] * len(paths)


async def test_token_in_the_url_is_accepted(gateway: Gateway) -> None:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[run]\ntoken = "{TOKEN}"\n'})
    async with client(gateway, BOTH, authenticator=authenticator) as http:
        body = {"requests": [asked(turn(1))]}
        for credentials in (None, ("any", "wrong-token-0123456789"), (TOKEN, "")):
            assert (await http.post("/score", json=body, auth=credentials)).status_code == 401
        assert (await http.post("/score", json=body, auth=("any", TOKEN))).status_code == 200
        assert (await http.post("/score", json=body, headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
        assert (await http.get("/rewards", headers={"authorization": "Basic !"})).status_code == 401
        assert (await http.get("/health")).status_code == 401
        assert (await http.get("/health", auth=("any", TOKEN))).status_code == 200


def test_openrlhf_reward_must_be_served() -> None:
    scorers = {"tier": {"kind": "tier", "model": "hub/model"}}
    Settings.model_validate({"scorers": scorers, "compat": {"openrlhf": "tier"}})
    with pytest.raises(ValueError, match=r"openrlhf is 'ber'; name a scorer \(tier\) or an ensemble \(there is none\)"):
        Settings.model_validate({"scorers": scorers, "compat": {"openrlhf": "ber"}})
