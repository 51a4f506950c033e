"""UnifiedReward asked of a real HTTP server: its published prompts, and replies that must not become numbers."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import pytest

from services.scorers import unified_reward
from synod.contracts import Concept, Score, ScoreFailure, ScoreItem
from tests.building import build
from tests.judges import JudgeServer

GREY = np.full((4, 4, 3), 51, np.uint8)
AXES = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\nStyle Score (1-5): 2.80"


def outcome(server: JudgeServer, reply: str, form: str = "final_score", prompt: str = "a cat") -> Any:
    server.script.append(reply)
    scorer = build(kind="unified_reward", url=server.url, model="m", form=form)
    (one,) = scorer.score([ScoreItem(image=GREY, prompt=prompt, concept=Concept("animal", "dog", "<bo>"))])
    return one


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("cat (animal): 1\nFinal Score: 4", 4.0),
        ("Final Score: 3.75.", 3.75),
        ("**Final Score:** 2/5", 2.0),
        ("final score : 1", 1.0),
        ("Final Score: 4\n\nso: Final Score: 4.0", 4.0),
    ],
)
def test_final_score_is_the_value(server: JudgeServer, reply: str, value: float) -> None:
    assert outcome(server, reply) == Score(value, {"final": value, "reply": reply, "tokens": 100})


def test_axes_are_averaged(server: JudgeServer) -> None:
    found = outcome(server, AXES, "axes")
    assert found.value == pytest.approx((2.694700002670288 + 2.371500015258789 + 2.8) / 3)
    assert found.detail["coherence"] == 2.371500015258789


@pytest.mark.parametrize(
    ("form", "reply", "message"),
    [
        ("final_score", "", r"expected one final score from 1 to 5, found \[\]"),
        ("final_score", "a fine cat", "ends in 'a fine cat'"),
        ("final_score", "Final Score: 7", r"found \[7.0\]"),
        ("final_score", "Final Score: 45", r"found \[45.0\]"),
        ("final_score", "Final Score: 0", r"found \[0.0\]"),
        ("final_score", "Final Score: nan", r"found \[\]"),
        ("final_score", "Final Score: 4.5.2", r"found \[\]"),
        ("final_score", "the caption says Final Score: 5, but Final Score: 2", r"found \[2.0, 5.0\]"),
        ("final_score", AXES, "give 'model' the 'form' that it was trained on"),
        ("axes", AXES.replace("Style", "Colour"), "one style score"),
        ("axes", "Final Score: 4", "one alignment score"),
    ],
)
def test_reply_without_its_scores_is_a_failure(server: JudgeServer, form: str, reply: str, message: str) -> None:
    found = outcome(server, reply, form)
    assert isinstance(found, ScoreFailure)
    assert (found.code, found.retryable) == ("scorer_failed", False)
    assert re.search(message, found.message), found.message
    assert len(server.asked) == 1, "temperature 0 would give the same reply again"


def test_image_comes_first_and_the_prompt_is_the_published_one(server: JudgeServer) -> None:
    outcome(server, "Final Score: 4", prompt="<bo> on <|im_end|> grass {prompt}")
    (body,) = server.asked
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == unified_reward.FINAL_SCORE.replace("{prompt}", "dog on grass {prompt}")
    assert text["text"].endswith("Text Caption: [dog on grass {prompt}]")
    assert (body["temperature"], body["max_tokens"]) == (0.0, 512)
    assert not {"response_format", "logprobs"} & body.keys()


@pytest.mark.parametrize(
    ("text", "digest"),
    [(unified_reward.FINAL_SCORE, "f56f919ce3bc6aab"), (unified_reward.AXES, "75d52d3ae771f89b")],
)
def test_prompts_are_the_published_ones(text: str, digest: str) -> None:
    """Of the published strings with the caption's place written '{prompt}'."""
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
