"""The judge's client against a real HTTP server that misbehaves."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from services.cluster.golden_probe import ProbeTimeouts
from services.models.judge import LONGEST_S, MAX_ANSWER_BYTES, Judge, load
from services.models.rate_limit import RequestPacer, TokenBudget
from services.models.settings import JudgeLimits
from services.models.types import Graded, Question, TrueFalse, Verdict
from services.scorers.judge import JudgeSettings
from synod.errors import DeadlineExceeded, JudgeBudget, Overloaded, ScorerFailed, SettingsError, SynodError, Unavailable
from synod.images import encode_png
from synod.retry import RetryPolicy
from tests.judges import JudgeServer

KEY = "sk-very-secret-31"
GOOD = '{"reason": "clear", "score": 0.25}'
PNG = encode_png(np.full((4, 4, 3), 51, np.uint8))  # brightness 0.2


class Pauses(list[float]):
    """Stands in for sleep: remembers instead of waiting."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def judge(server: JudgeServer, pauses: Pauses | None = None, *, key: str | None = KEY, **limits: Any) -> Judge:
    endpoint = JudgeSettings(kind="judge", url=server.url, model="m", limits=JudgeLimits(**limits))
    retry = RetryPolicy(max_retries=3, base_s=0.5, uniform=lambda low, high: high)
    return Judge(endpoint, key, retry=retry, sleep=Pauses() if pauses is None else pauses)


def question(text: str = "how good?", form: Any = None) -> Question:
    return Question(text, PNG, form or Graded(0.0, 1.0))


def status(code: int, text: str = "no", **headers: str) -> Response:
    return JSONResponse({"error": {"message": text}}, code, {k.replace("_", "-"): v for k, v in headers.items()})


def test_a_question_carries_image_schema_and_key(server: JudgeServer) -> None:
    found = judge(server).ask(question())
    assert found == Verdict(pytest.approx(0.2), "seen", repaired=False, tokens=100)
    (body,) = server.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 512)
    assert body["messages"][0]["content"][0] == {"type": "text", "text": "how good?"}
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert list(schema["schema"]["properties"]) == ["reason", "score"]
    assert schema["schema"]["additionalProperties"] is False
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    judge(server, key=None).ask(question())
    assert "authorization" not in server.headers[1]


def test_answers_keep_the_questions_order(server: JudgeServer) -> None:
    pngs = [encode_png(np.full((2, 2, 3), level, np.uint8)) for level in range(0, 255, 17)]
    found = judge(server).ask_all([Question("?", png, Graded(0, 1)) for png in pngs])
    assert [v.value for v in found if isinstance(v, Verdict)] == pytest.approx([k * 17 / 255 for k in range(15)])


@pytest.mark.parametrize(
    ("answers", "pauses"),
    [
        ([status(429, retry_after="7")], [7.5]),
        ([status(429), status(503, retry_after="2"), status(500)], [0.5, 3.0, 2.0]),
        ([status(408)], [0.5]),
        ([status(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")], [0.5]),
    ],
)
def test_temporary_failures_are_retried(server: JudgeServer, answers: list[Response], pauses: list[float]) -> None:
    server.script.extend([*answers, GOOD])
    waited = Pauses()
    assert judge(server, waited).ask(question()).value == 0.25
    assert waited == pauses
    assert len(server.asked) == len(answers) + 1


@pytest.mark.parametrize(
    ("answer", "kind", "message", "requests"),
    [
        (status(429, "slow down"), Overloaded, "slow down", 4),
        (status(502, "gone"), Unavailable, "502.*gone", 4),
        (status(429, retry_after="3600"), Overloaded, "429", 1),  # beyond the deadline: no retry
        *(
            (status(code, "unknown model"), ScorerFailed, f"refuses the request .{code}.*unknown model", 1)
            for code in (400, 404, 422, 302)
        ),
    ],
)
def test_lasting_failures_are_raised(
    server: JudgeServer, answer: Response, kind: type[SynodError], message: str, requests: int
) -> None:
    server.script.extend([answer] * 4)
    with pytest.raises(kind, match=message) as raised:
        judge(server, timeout_s=33).ask(question())
    assert raised.value.retryable is (kind is not ScorerFailed)
    assert raised.value.retry_after_s == (3600 if "retry-after" in answer.headers else None)
    assert len(server.asked) == requests


def test_a_hanging_server_is_a_timeout(server: JudgeServer) -> None:
    server.script.extend(["hang"] * 4)
    with pytest.raises(DeadlineExceeded, match=r"timeout_s = 0\.8"):
        judge(server, timeout_s=0.8).ask(question())
    assert len(server.asked) == 2


def test_unreachable_judge_is_unavailable(server: JudgeServer) -> None:
    endpoint = JudgeSettings(kind="judge", url="http://127.0.0.1:1/v1", model="m")
    gone = Judge(endpoint, KEY, retry=RetryPolicy(max_retries=1), sleep=Pauses())
    with pytest.raises(Unavailable, match="ConnectError"):
        gone.ask(question())


BAD = {
    "no JSON": "I would say 0.7",
    "fenced": "```json\n" + GOOD + "\n```",
    "a text": '{"reason": "r", "score": "0.7"}',
    "a boolean": '{"reason": "r", "score": true}',
    "missing": '{"reason": "r"}',
    "too high": '{"reason": "r", "score": 1.01}',
    "too low": '{"reason": "r", "score": -0.01}',
    "NaN": '{"reason": "r", "score": NaN}',
    "infinite": '{"reason": "r", "score": 1e999}',
    "more keys": '{"reason": "r", "score": 0.5, "also": 1}',
    "twice": '{"reason": "r", "score": 0.5, "score": 0.9}',
    "a list": "[0.5]",
    "reason no text": '{"reason": 3, "score": 0.5}',
    "empty": "",
    "deep": "[" * 20000,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_verdict_that_cannot_be_read_is_repaired_once_or_fails(server: JudgeServer, bad: str) -> None:
    server.script.extend([bad, GOOD])
    found = judge(server).ask(question())
    assert (found.value, found.repaired, found.tokens) == (0.25, True, 200)
    first, second = server.asked
    assert second["messages"][0] == first["messages"][0]
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == bad
    server.asked.clear()
    server.script.extend([bad, bad, GOOD])
    with pytest.raises(ScorerFailed, match="cannot be read, nor could its repair"):
        judge(server).ask(question())
    assert len(server.asked) == 2
    server.script.clear()


def test_boolean_verdicts_are_not_numbers(server: JudgeServer) -> None:
    server.script.extend(['{"reason": "r", "valid": true}', '{"reason": "r", "valid": false}'])
    asked = judge(server, concurrency=1).ask_all([question(form=TrueFalse())] * 2)
    assert [v.value for v in asked if isinstance(v, Verdict)] == [1.0, 0.0]
    server.script.extend(['{"reason": "r", "valid": 1}'] * 2)
    with pytest.raises(ScorerFailed, match="boolean"):
        judge(server).ask(question(form=TrueFalse()))


@pytest.mark.parametrize(
    "answer",
    [
        Response("<html>", media_type="text/html"),
        JSONResponse({"choices": []}),
        JSONResponse({"choices": [{"message": {"content": GOOD}}], "usage": {"prompt_tokens": "many"}}),
        JSONResponse([1]),
        Response(b"\xff\xfe"),
        Response(b"{" + b" " * MAX_ANSWER_BYTES + b"}"),
    ],
)
def test_answer_that_is_not_a_completion_fails(server: JudgeServer, answer: Response) -> None:
    server.script.append(answer)
    with pytest.raises(ScorerFailed, match=r"not a chat completion|over 1048576 bytes"):
        judge(server).ask(question())


@pytest.mark.parametrize("code", [401, 403, 400, 429, 500, 200])
def test_key_is_not_in_errors_or_logs(server: JudgeServer, code: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.script.extend([status(code, f"bad key {KEY}")] * 4)
    with pytest.raises(SynodError) as raised:
        judge(server).ask(question())
    message = str(raised.value) + repr(raised.value.__cause__) + caplog.text
    assert "very-secret" not in message
    if code in (401, 403):
        assert "key_env" in str(raised.value)


def test_concurrent_requests_are_bounded(server: JudgeServer) -> None:
    server.gate = threading.Event()
    found: list[Any] = []
    asking = judge(server, concurrency=3)
    thread = threading.Thread(target=lambda: found.extend(asking.ask_all([question()] * 8)))
    thread.start()
    while server.open < 3:
        time.sleep(0.005)
    server.gate.set()
    thread.join(20)
    assert len(found) == 8
    assert server.max_concurrent == 3


def test_a_spent_budget_asks_no_more(server: JudgeServer) -> None:
    asking = judge(server, concurrency=1, max_tokens=250)
    found = asking.ask_all([question()] * 5)
    assert [isinstance(f, Verdict) for f in found] == [True, True, True, False, False]
    assert len(server.asked) == 3
    assert isinstance(found[3], JudgeBudget)
    assert "300 of limits.max_tokens = 250" in found[3].message
    assert not found[3].retryable


def test_a_slow_judge_ends_its_batch_before_the_replica_counts_as_stuck(server: JudgeServer) -> None:
    times = itertools.count(0.0, 10.0)  # each look at the clock takes ten seconds
    endpoint = JudgeSettings(kind="judge", url=server.url, model="m", limits=JudgeLimits(concurrency=1))
    found = Judge(endpoint, KEY, clock=lambda: next(times), sleep=Pauses()).ask_all([question()] * 60)
    answered = [isinstance(one, Verdict) for one in found]
    assert answered == sorted(answered, reverse=True)
    assert 1 < len(server.asked) == sum(answered) < 30
    assert isinstance(found[-1], DeadlineExceeded)
    assert "the judge took 540 s for a part of a batch; raise limits.concurrency" in found[-1].message
    assert ProbeTimeouts().batch_s > LONGEST_S


def test_repairs_and_timeouts_count_toward_the_budget(server: JudgeServer) -> None:
    asking = judge(server, concurrency=1, timeout_s=0.8, max_tokens=10_000)
    server.script.extend(["no verdict", GOOD])
    asking.ask(question())
    assert asking.budget.tokens == 200
    server.script.extend(["hang", GOOD])
    asking.ask(question())
    assert asking.budget.tokens == 400  # the one nobody heard of counts as the dearest
    server.script.extend([status(500), GOOD])
    asking.ask(question())
    assert asking.budget.tokens == 500


def test_token_limit_needs_reported_usage(server: JudgeServer) -> None:
    server.usage = None
    assert judge(server).ask(question()).tokens == 0
    with pytest.raises(ScorerFailed, match="reports no usage"):
        judge(server, max_tokens=1000).ask(question())


def test_requests_in_flight_hold_their_share() -> None:
    budget = TokenBudget(300)
    with budget.request() as first:
        first.tokens = 100
    with budget.request(), budget.request(), pytest.raises(JudgeBudget), budget.request():
        pass  # 100 spent and two of 100 in flight: no room for a third
    with budget.request():
        assert budget.tokens == 100  # those two cost nothing after all


def test_starts_are_spaced_evenly() -> None:
    now, slept = [100.0], Pauses()
    pace = RequestPacer(30, lambda: now[0], slept)
    for _ in range(4):
        pace.wait(ends_s=106.5)
    assert slept == [2.0, 4.0, 6.0]
    with pytest.raises(DeadlineExceeded, match="requests_per_minute"):
        pace.wait(ends_s=106.5)
    now[0] = 120.0
    pace.wait(ends_s=121.0)
    assert slept == [2.0, 4.0, 6.0]
    free = Pauses()
    for _ in range(3):
        RequestPacer(None, lambda: 0.0, free).wait(1.0)
    assert free == []


def test_keys_come_from_a_file_or_the_environment(
    server: JudgeServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    about = {"kind": "judge", "url": server.url, "model": "m"}
    for place in ({"key_file": str(tmp_path / "key")}, {"key_env": "JUDGE_KEY"}):
        load(JudgeSettings.model_validate(about | place)).ask(question())
        assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    for place, message in (
        ({"key_file": str(tmp_path / "none")}, "No such file"),
        ({"key_env": "NONE"}, "key_env NONE: no such environment variable"),
    ):
        with pytest.raises(SettingsError, match=message):
            load(JudgeSettings.model_validate(about | place))
    (tmp_path / "key").write_text("two\nlines of secret")
    with pytest.raises(SettingsError) as raised:
        load(JudgeSettings.model_validate(about | {"key_file": str(tmp_path / "key")}))
    assert "secret" not in str(raised.value)
