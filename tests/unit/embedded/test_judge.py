"""The judge reads claims by the grammar, and agrees with the truth; it answers as chat completions do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from embedded import world
from embedded.judge import Claim, WorldJudge, app, grade_text, read_claims
from embedded.makers.metrics import judge_agreement
from services.models.types import png_content
from synod.images import encode_png


@pytest.fixture(scope="module")
def judge() -> WorldJudge:
    return WorldJudge()


def test_claims_of_prompts_equal_hand_written_ones() -> None:
    assert read_claims("a photo of three people") == [Claim("object", "person", None, 3)]
    assert read_claims("a photo of a red-colored dog left of a fish") == [
        Claim("object", "dog", "red"),
        Claim("object", "fish"),
        Claim("relation", "dog", "left of", other="fish"),
    ]
    assert read_claims("A dog with floppy ears, wearing an orange hat, next to a blue cup, on the beach.") == [
        Claim("object", "dog"),
        Claim("object", "cup", "blue"),
        Claim("accessory", "hat", "orange"),
        Claim("place", "beach"),
    ]
    assert read_claims("Does the picture show this? It counts only if all of it is there, as it is said") == []


def test_verdicts_agree_with_the_truth() -> None:
    found = {metric.name: metric for metric in judge_agreement(100, lambda image: image, 7)}
    total = found["judge: verdict on a claim agrees"]
    assert total.n >= 100
    assert total.value >= 0.9
    assert found["judge, object"].value >= 0.95


def test_facts_say_which_colour_is_meant(judge: WorldJudge) -> None:
    profile = world.profile_of("<bo>")
    drawn = world.render(
        world.concept_scene(profile, np.random.default_rng(3), (("hat", "red"),)), np.random.default_rng(3)
    )
    asked = "a photo of a dog wearing its hat"
    right, wrong = (judge.grade(asked, drawn.image, f"dog has a {color} hat") for color in ("red", "blue"))
    assert (right[0], wrong[0]) == (1.0, 0.5)
    assert judge.grade(asked, drawn.image)[0] == 1.0, "without the fact any hat will do"
    content = [{"type": "text", "text": f"Known of bo: a dog. Facts: bo has a blue hat.\nIt was asked for: {asked}"}]
    body = {"messages": [{"role": "user", "content": [*content, png_content(encode_png(drawn.image))]}]}
    said = TestClient(app(judge)).post("/v1/chat/completions", json=body).json()
    assert json.loads(said["choices"][0]["message"]["content"])["score"] == 0.5


@pytest.mark.parametrize(
    ("right", "reply", "grade"),
    [
        ("<bo> has a red hat.", "<bo> has a red hat", 1.0),
        ("<bo> has a red hat.", "a blue hat", 0.5),
        ("<bo> has a red hat.", "I do not remember", 0.0),
        ("yes.", "Yes, it is", 1.0),
        ("yes.", "no.", 0.0),
        ("two dogs.", "there are two dogs", 1.0),
        ("hello", "Hello!", 1.0),
    ],
)
def test_texts_are_graded_by_their_values(right: str, reply: str, grade: float) -> None:
    assert grade_text(right, reply) == grade


def test_endpoint_answers_by_the_schema(judge: WorldJudge) -> None:
    rng = np.random.default_rng(1)
    prompt = next(p for p in (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT) if p.text == "a photo of a red ball")
    png = encode_png(world.render(world.scene_for(prompt, rng), rng).image)

    def ask(text: str, field: str | None, image: bool = True) -> dict[str, object]:
        content = [{"type": "text", "text": text}, *([png_content(png)] if image else [])]
        schema = {"json_schema": {"schema": {"properties": {field: {}}}}} if field else {}
        body = {"messages": [{"role": "user", "content": content}], "response_format": schema}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["usage"]["prompt_tokens"] > 0
        found: dict[str, object] = json.loads(answer["choices"][0]["message"]["content"])
        return found

    client = TestClient(app(judge))
    assert ask("Does the picture show this? As it is said: a red ball", "valid")["valid"] is True
    assert ask("Does the picture show this? As it is said: a blue ball", "valid")["valid"] is False
    assert ask("Grade from 0 to 1.\n\na photo of a red ball and a dog", "score")["score"] == 0.5
    assert ask("Right answer: yes. Reply: no.", None, image=False)["score"] == 0.0


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"messages": []}',
        b'{"messages": [{"content": "no parts"}]}',
        b'{"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}',
        b'{"messages": [{"content": [{"type": "text", "text": "Right answer: a Reply: b"}]}], "response_format": null}',
    ],
)
def test_what_is_not_a_question_is_answered_with_400(judge: WorldJudge, body: bytes) -> None:
    answer = TestClient(app(judge)).post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "not a question to this judge" in answer.json()["error"]["message"]
