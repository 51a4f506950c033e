"""Judged scorers: rubrics, segments, and outcomes that are never a silent 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from services.origin import origin
from services.scorers import dense_validity, registry
from services.scorers.base import Scorer, score_batch
from services.scorers.dense_validity import segments
from synod.contracts import About, Concept, Reasoning, Score, ScoreFailure, ScoreItem
from synod.images import encode_png
from tests.judges import JudgeServer
from tests.outcomes import value, values

DARK, BRIGHT = (np.full((4, 4, 3), level, np.uint8) for level in (51, 204))


def built(server: JudgeServer, kind: str, **changes: Any) -> Scorer:
    about = {"kind": kind, "url": server.url, "model": "m", "limits": {"concurrency": 1}}
    return registry.build(kind, registry.SETTINGS.validate_python({**about, **changes}))


def text_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][0]["text"]
    return text


def test_grade_is_the_value_and_detail_has_the_reason(server: JudgeServer) -> None:
    dark, bright = built(server, "judge").score([ScoreItem(image=p, prompt="a cat") for p in (DARK, BRIGHT)])
    assert dark == Score(0.2, {"reason": "seen", "repaired": False, "tokens": 100})
    assert value(bright) == pytest.approx(0.8)
    assert text_of(server.asked[0]).endswith("\n\na cat")


def test_rubric_is_the_settings(server: JudgeServer) -> None:
    scorer = built(server, "judge", rubric="Is {prompt} here, {low}?")
    assert (scorer.spec.low, scorer.spec.high, scorer.spec.needs) == (0, 1, ("image", "prompt"))
    concept = Concept("animal", "dog", "<bo>")
    server.script.append('{"reason": "r", "score": 0.5}')
    (outcome,) = scorer.score([ScoreItem(image=DARK, prompt="<bo> {sits}", concept=concept)])
    assert value(outcome) == 0.5
    assert text_of(server.asked[0]) == "Is dog {sits} here, {low}?"
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["description"] == "from 0 to 1"
    assert built(server, "judge", rubric="Is it sharp?").spec.needs == ("image",)


def test_rubric_says_what_is_known_of_a_concept(server: JudgeServer) -> None:
    about = About("<bo> is a {prompt} dog.", ("<bo> has a red hat", "<bo> has a kite"))
    item = ScoreItem(image=DARK, prompt="<bo> in its hat", concept=Concept("animal", "dog", "<bo>", about))
    built(server, "judge", rubric="{name}: {info} Facts: {facts}. {prompt}").score([item])
    built(server, "judge", rubric="{info} {facts}. {prompt}").score([item])
    assert [text_of(body) for body in server.asked] == [
        "bo: bo is a {prompt} dog. Facts: bo has a red hat; bo has a kite. bo in its hat",
        "dog is a {prompt} dog. dog has a red hat; dog has a kite. dog in its hat",
    ]
    bare = replace(item, concept=Concept("animal", "dog", "<bo>"))
    outcomes = built(server, "judge", rubric="{info} {prompt}").score([bare, item, replace(item, concept=None)])
    assert values(outcomes) == ["invalid_item", pytest.approx(0.2), "invalid_item"]
    assert len(server.asked) == 3, "an item that lacks what the rubric asks for costs no request"


def test_text_judge_compares_a_reply_with_the_right_answer(server: JudgeServer) -> None:
    scorer = built(server, "judge_text")
    assert scorer.spec.needs == ("prompt", "reasoning")
    right = ("<bo> has a red hat", "a hat")
    reasonings = [
        Reasoning(reply, right, (1.0, 0.0)) for reply in ("<bo> has a red hat", "bo has a red hat. yes", "  ")
    ]
    outcomes = scorer.score([ScoreItem(prompt="what has <bo>?", reasoning=one) for one in reasonings])
    assert values(outcomes) == [1.0, 0.5, 0.0]
    assert isinstance(outcomes[2], Score)
    assert outcomes[2].detail == {"reason": "the reply is empty"}
    assert len(server.asked) == 2
    asked = server.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in asked] == ["text"]
    assert asked[0]["text"].endswith("Question: what has bo?\nRight answer: bo has a red hat\nReply: bo has a red hat")


def test_a_text_verdict_between_the_grades_is_a_failure(server: JudgeServer) -> None:
    server.script.extend(['{"reason": "r", "score": 0.7}', '{"reason": "r", "score": 0.5}'])
    items = [ScoreItem(prompt="q", reasoning=Reasoning("a", ("a",), (truth,))) for truth in (1.0, 0.0)]
    repaired, none_right = score_batch(built(server, "judge_text"), items)
    assert values((repaired, none_right)) == [0.5, "invalid_item"]
    assert "give one of 0, 0.5, 1" in server.asked[1]["messages"][-1]["content"]
    server.script.extend(['{"reason": "r", "score": 0.7}'] * 2)
    assert values(score_batch(built(server, "judge_text"), items[:1])) == ["scorer_failed"]


def test_quality_sees_the_image_alone(server: JudgeServer) -> None:
    scorer = built(server, "quality")
    assert scorer.spec.needs == ("image",)
    (outcome,) = scorer.score([ScoreItem(image=BRIGHT, prompt="a cat")])
    assert value(outcome) == pytest.approx(0.8)
    assert "cat" not in text_of(server.asked[0])


def test_a_verdict_out_of_range_is_a_failure_and_never_zero(server: JudgeServer) -> None:
    server.script.extend(['{"reason": "r", "score": 7}'] * 2)
    outcomes = score_batch(built(server, "judge"), [ScoreItem(image=p, prompt="x") for p in (DARK, BRIGHT)])
    assert values(outcomes) == ["scorer_failed", pytest.approx(0.8)]
    assert len(server.asked) == 3  # the neighbour was not asked, and paid, twice


def test_invalid_image_is_not_sent(server: JudgeServer) -> None:
    items = [ScoreItem(image=BRIGHT, prompt="a"), ScoreItem(image=np.full((4, 4), "x"), prompt="b")]  # type: ignore[arg-type]
    assert values(score_batch(built(server, "judge"), items)) == [pytest.approx(0.8), "scorer_failed"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red cat, two dogs; a hat.", ["a red cat", "two dogs", "a hat"]),
        ("a cat", ["a cat"]),
        ("3.5 apples: yes!?", ["3.5 apples", "yes"]),
        ("it's a black-white cat , and - , a dog", ["it's a black-white cat", "and -", "a dog"]),
        ("\u732b\uff0c\u72d7\u3002", ["\u732b", "\u72d7"]),
        ("one\n\ntwo", ["one", "two"]),
        (" ,.; ", []),
    ],
)
def test_segments_are_what_stands_between_punctuation(prompt: str, expected: list[str]) -> None:
    assert segments(prompt) == expected


def test_dense_validity_is_the_share_of_segments_seen(server: JudgeServer) -> None:
    prompt = "surely a cat, a dog, surely <bo>"
    dark, bright, none = built(server, "dense_validity").score(
        [
            ScoreItem(image=DARK, prompt=prompt, concept=Concept("animal", "fox", "<bo>")),
            ScoreItem(image=BRIGHT, prompt=prompt),
            ScoreItem(image=DARK, prompt=", <bo>,"),
        ]
    )
    assert isinstance(dark, Score)
    assert values((dark, bright, none)) == [pytest.approx(2 / 3), 1.0, "invalid_item"]
    assert [(s["segment"], s["valid"]) for s in dark.detail["segments"]] == [
        ("surely a cat", True),
        ("a dog", False),
        ("surely fox", True),
    ]
    assert dark.detail["tokens"] == 300


def test_dense_validity_encodes_an_image_once(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []

    def encode(pixels: Any) -> bytes:
        encoded.append(pixels)
        return encode_png(pixels)

    monkeypatch.setattr(dense_validity, "encode_png", encode)
    prompt = ", ".join(["surely a cat"] * 10)
    outcomes = built(server, "dense_validity").score([ScoreItem(image=one, prompt=prompt) for one in (DARK, BRIGHT)])
    assert values(outcomes) == [1.0, 1.0]
    assert [id(pixels) for pixels in encoded] == [id(DARK), id(BRIGHT)]
    assert len(server.asked) == 20


def test_too_many_segments_cost_no_request(server: JudgeServer) -> None:
    prompts = [", ".join(["surely a cat"] * count) for count in (65, 64)]
    many, most = built(server, "dense_validity").score([ScoreItem(image=DARK, prompt=one) for one in prompts])
    assert values((many, most)) == ["invalid_item", 1.0]
    assert isinstance(many, ScoreFailure)
    assert many.message == "the prompt has 65 segments, the limit is 64; shorten it, or send several items"
    assert len(server.asked) == 64


def test_a_segment_without_a_verdict_fails_the_item_alone(server: JudgeServer) -> None:
    server.script.extend(["no", "still no", '{"reason": "r", "valid": true}'])
    items = [ScoreItem(image=DARK, prompt="a cat, a dog"), ScoreItem(image=DARK, prompt="surely a bird")]
    bad, good = built(server, "dense_validity").score(items)
    assert isinstance(bad, ScoreFailure)
    assert "1 of 2 segments have no verdict" in bad.message
    assert value(good) == 1.0


def test_a_spent_budget_is_its_own_failure(server: JudgeServer) -> None:
    scorer = built(server, "judge", limits={"concurrency": 1, "max_tokens": 100})
    outcomes = score_batch(scorer, [ScoreItem(image=DARK, prompt="x")] * 2)
    assert values(outcomes) == [pytest.approx(0.2), "judge_budget"]


ABOUT = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "http://me:secret@host/v1"}, "url"),
        ({"url": "ftp://host/v1"}, "url"),
        ({"url": "http://host/v1?key=1"}, "url"),
        ({"key_env": "A", "key_file": "/b"}, "give one of them"),
        ({"limits": {"max_dollars": 1.0}}, "max_dollars"),
        ({"api_key": "sk"}, "api_key"),
    ],
)
def test_invalid_judge_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        registry.SETTINGS.validate_python({**ABOUT, **changes})


def test_a_key_in_the_url_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as raised:
        registry.SETTINGS.validate_python({**ABOUT, "url": "http://me:hidden@host/v1"})
    (error,) = raised.value.errors()
    assert not isinstance(error["input"], str)
    assert "hidden" not in error["msg"]


def test_an_origin_follows_the_model_and_neither_key_nor_limits(tmp_path: Any) -> None:
    def of(**changes: Any) -> Any:
        return origin(registry.SETTINGS.validate_python({**ABOUT, **changes}))

    key = tmp_path / "key"  # it need not exist where origins are computed
    assert of(key_file=str(key)) == of(key_env="K") == of(limits={"concurrency": 2}) == of()
    assert of(model="n") != of()
    assert of(rubric="Is it sharp?") != of()
