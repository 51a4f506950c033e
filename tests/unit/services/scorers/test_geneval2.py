"""Soft-TIFA against its published formula, asked of a real HTTP server; what is not measured is a failure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from starlette.responses import Response

from services.scorers.geneval2 import spellings
from synod.contracts import GenEvalClause, GenEvalMetadata, Score, ScoreFailure, ScoreItem
from synod.scoring import geneval
from tests.building import build
from tests.judges import JudgeServer

GREY = np.full((4, 4, 3), 51, np.uint8)
COWS = ("How many cows are in the image?", "three")
PLASTIC = ("Are the cows plastic?", "Yes")


def outcome(server: JudgeServer, replies: list[Any], method: str = "soft_tifa_gm", asked: Any = (COWS, PLASTIC)) -> Any:
    """Of one item; a reply is a text, or the likeliest first tokens."""
    for reply in replies:
        server.script.append(server.completion("word", reply) if isinstance(reply, Mapping) else reply)
    scorer = build(kind="geneval2", url=server.url, model="m", method=method, limits={"concurrency": 1})
    (one,) = scorer.score([ScoreItem(image=GREY, geneval=GenEvalMetadata("geneval2", (), (), asked))])
    return one


FIRST = {"three": 0.4, "3": 0.2, "Three": 0.05, " three": 0.01, "two": 0.3, "the": 0.001}
SECOND = {"No": 0.7, "Yes": 0.15, "yes": 0.05, "NO": 0.02}


@pytest.mark.parametrize(
    ("method", "value"), [("soft_tifa_am", (0.66 + 0.2) / 2), ("soft_tifa_gm", (0.66 * 0.2) ** 0.5)]
)
def test_value_is_the_mean_of_the_answers_probabilities(server: JudgeServer, method: str, value: float) -> None:
    found = outcome(server, [FIRST, SECOND], method)
    assert isinstance(found, Score)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert [atom["value"] for atom in found.detail["atoms"]] == pytest.approx([0.66, 0.2], abs=1e-12)
    assert [atom["answer"] for atom in found.detail["atoms"]] == ["three", "Yes"]


def test_questions_are_asked_as_published(server: JudgeServer) -> None:
    outcome(server, [FIRST, SECOND])
    assert [body["messages"][0]["content"][1]["text"] for body in server.asked] == [
        "How many cows are in the image? Answer in one word.",
        "Are the cows plastic? Answer in one word.",
    ]
    for body in server.asked:
        assert body["messages"][0]["content"][0]["type"] == "image_url"
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
        assert body["temperature"] == 0.0
        assert "response_format" not in body


def test_spellings_are_the_published_ones() -> None:
    """evaluation.py: the answer, capitalised, as a numeral, each also after a space; 'Yes' and 'yes' likewise."""
    assert spellings(*COWS) == {"three", "Three", "3", " three", " Three", " 3"}
    assert spellings(*PLASTIC) == {"Yes", "yes", " Yes", " yes"}
    assert spellings("How many cows are in the image?", "eleven") == {"eleven", "Eleven", " eleven", " Eleven"}


def test_answer_outside_the_list_counts_with_its_bound(server: JudgeServer) -> None:
    found = outcome(server, [{"two": 0.9, "four": 0.09, "the": 0.0004}, SECOND], "soft_tifa_am")
    assert found.value == pytest.approx((0.0004 + 0.2) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        (["three", SECOND], "reports no log-probabilities of its first token; take a server"),
        (
            [FIRST, {"No": 0.9, "NO": 0.05}],
            r"'Yes' is not among the 2 .* the least has 0.05; the limit is 0.01: take",
        ),
        ([FIRST, Response('{"error": "no logprobs here"}', 400)], "refuses the request"),
    ],
)
def test_answer_without_a_probability_fails_the_item(server: JudgeServer, replies: list[Any], message: str) -> None:
    found = outcome(server, replies)
    assert isinstance(found, ScoreFailure)
    assert found.code == "scorer_failed"
    assert re.search(message, found.message), found.message


def test_hard_answers_are_words(server: JudgeServer) -> None:
    asked = (COWS, COWS, PLASTIC, PLASTIC)
    assert outcome(server, ["3", "Three cows.", "No", " Yes."], "tifa", asked).value == 0.75
    assert not {"logprobs", "top_logprobs"} & server.asked[0].keys()
    assert outcome(server, ["three", ""], "tifa").code == "scorer_failed"


@pytest.mark.parametrize(
    ("asked", "message"), [((), "vqa_list is empty"), ((("Is it red?", "No"),), "must be 'Yes' unless")]
)
def test_item_whose_questions_cannot_be_asked_is_invalid(server: JudgeServer, asked: Any, message: str) -> None:
    found = outcome(server, [], asked=asked)
    assert isinstance(found, ScoreFailure)
    assert found.code == "invalid_item"
    assert message in found.message
    assert server.asked == []


def test_published_line_is_an_item() -> None:
    questions = [["How many toys are in the image?", "two"]]
    fields = {"prompt": "two metal toys", "atom_count": 3, "vqa_list": questions, "skills": ["count"]}
    assert geneval.is_metadata(fields)
    assert geneval.item_fields(fields) == {
        "prompt": "two metal toys",
        "geneval": {"tag": "geneval2", "include": [], "vqa_list": questions},
    }


@pytest.mark.parametrize(
    ("replies", "value"), [(["Three.", "Yes"], 1.0), (["Three.", "No"], 0.0), (["two", "yes"], 0.0)]
)
def test_one_wrong_reply_fails_the_checklist(server: JudgeServer, replies: list[str], value: float) -> None:
    found = outcome(server, [server.completion(reply) for reply in replies], "all")
    assert isinstance(found, Score)
    assert found.value == value
    assert found.detail["method"] == "all"


def test_clauses_without_questions_make_them(server: JudgeServer) -> None:
    server.script += [server.completion("two"), server.completion("two")]
    scorer = build(kind="geneval2", url=server.url, model="m", method="all", limits={"concurrency": 1})
    metadata = GenEvalMetadata("colors", (GenEvalClause("cow", 2, "red"),))
    (found,) = scorer.score([ScoreItem(image=GREY, geneval=metadata)])
    assert isinstance(found, Score)
    assert found.value == 1.0
    assert [atom["question"] for atom in found.detail["atoms"]] == [
        "How many objects of the class 'cow' are in the image?",
        "How many of the objects of the class 'cow' are red?",
    ]
