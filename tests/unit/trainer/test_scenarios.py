"""The pathways: queries by hand, truth marks, and request items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod.contracts import Concept, GenEvalClause, GenEvalMetadata
from trainer.scenarios import compound, make_task, reward_item, surrogate_item, textual_query
from trainer.settings.data import TEMPLATES
from trainer.types import ConceptProfile, Prompt, RewardSpec

IMAGES = tuple(np.full((4, 4, 3), i, np.uint8) for i in range(3))
FACTS = ("<bo> has a red hat", "<bo> has a blue kite", "<bo> has a pink scarf")
ANSWERS = (("what is <bo>?", "<bo> is a dog."), ("what color?", "<bo> is brown."))
BO = ConceptProfile(Concept("animal", "dog", "<bo>"), "<bo> is a brown dog.", ANSWERS, FACTS, IMAGES)
VAGUE = Prompt("a photo of <bo> with its kite", "attribute", "<bo>", "a photo of a dog with a blue kite", 1)
PLAIN = Prompt("a photo of <bo>", "plain", "<bo>")
TWO = Prompt("two cats", "counting", geneval=GenEvalMetadata("counting", (GenEvalClause("cat", 2),)))
REWARD = RewardSpec({"pickscore": 1.0})
DRAWN = np.full((4, 4, 3), 200, np.uint8)
seeds = st.integers(0, 2**32)


def test_query_and_compound_prompt() -> None:
    assert textual_query(("<bo> has a hat", "<bo> has a kite."), "a photo of <bo> with its kite") == (
        "<bo> has a hat. <bo> has a kite. a photo of <bo> with its kite"
    )
    assert compound("a photo of <bo>", " <bo> is brown. ") == "a photo of <bo>. <bo> is brown."
    assert compound("a photo of <bo>.", "<bo> is brown.") == "a photo of <bo>. <bo> is brown."
    assert compound("a photo of <bo>", " ") == "a photo of <bo>"


def test_a_template_states_facts_prompt_and_name() -> None:
    assert textual_query(FACTS[:2], VAGUE.text, "{name}? {prompt}! {{{facts}}}", "<bo>") == (
        "<bo>? a photo of <bo> with its kite! {<bo> has a red hat. <bo> has a blue kite}"
    )
    assert textual_query(("it {holds} braces",), "{prompt}") == "it {holds} braces. {prompt}"
    made = make_task(VAGUE, BO, "textual", REWARD, np.random.default_rng(0), TEMPLATES["instruct"])
    assert made.query is not None
    assert made.query.text.startswith("This is known about <bo>: <bo> has a ")
    assert all(text in made.query.text for text in (*FACTS, VAGUE.text))


def test_a_concept_prompt_without_reasoning_keeps_its_references() -> None:
    made = make_task(VAGUE, BO, "none", REWARD, np.random.default_rng(0))
    assert (made.key, made.query, made.segments) == ("<bo>/none", None, ())
    item = reward_item(made, DRAWN, "", IMAGES[:2])
    assert (item.prompt, item.concept, len(item.references)) == (VAGUE.resolved, BO.concept, 2)
    assert (item.reasoning, item.geneval) == (None, None)


@given(seeds)
def test_textual_marks_the_hinted_fact_wherever_it_lands(seed: int) -> None:
    made = make_task(VAGUE, BO, "textual", REWARD, np.random.default_rng(seed))
    assert made.key == "<bo>/textual"
    assert sorted(made.segments) == sorted(FACTS)
    assert [s for s, y in zip(made.segments, made.truth, strict=True) if y] == [FACTS[1]]
    assert made.query is not None
    assert made.query.text == textual_query(made.segments, VAGUE.text)
    assert made.query.image is None


@given(seeds)
def test_visual_marks_the_answer_to_its_query(seed: int) -> None:
    made = make_task(PLAIN, BO, "visual", REWARD, np.random.default_rng(seed))
    assert made.key == "<bo>/visual"
    assert made.query is not None
    assert sorted(made.segments) == sorted(answer for _, answer in ANSWERS)
    assert [s for s, y in zip(made.segments, made.truth, strict=True) if y] == [dict(ANSWERS)[made.query.text]]
    assert any(made.query.image is image for image in IMAGES)


@given(seeds)
def test_visual_asks_about_the_image_of_its_answer(seed: int) -> None:
    answers = (("what is <bo> on?", "a sofa."), ("what is <bo> on?", "grass."), ("who is it?", "<bo>."))
    pictured = replace(BO, answers=(*answers, ("where?", "grass.")), about=(0, 1, None, 1), others=("a dog.",))
    made = make_task(PLAIN, pictured, "visual", REWARD, np.random.default_rng(seed))
    assert made.query is not None
    image = next(i for i, one in enumerate(IMAGES) if one is made.query.image)
    own = {0: ["<bo>.", "a sofa."], 1: ["<bo>.", "grass."], 2: ["<bo>.", "a dog."]}
    assert sorted(made.segments) == own[image], "answers that hold of the image; an answer of others if it has one"
    (right,) = (s for s, y in zip(made.segments, made.truth, strict=True) if y)
    asked = [pictured.about[i] for i, pair in enumerate(pictured.answers) if pair == (made.query.text, right)]
    assert asked in ([image], [None])


@given(seeds)
def test_equal_answers_are_one_segment(seed: int) -> None:
    alike = replace(BO, answers=(*ANSWERS, ("describe <bo>", "<bo> is brown.")))
    made = make_task(PLAIN, alike, "visual", REWARD, np.random.default_rng(seed))
    assert (sorted(made.segments), sum(made.truth)) == (sorted(answer for _, answer in ANSWERS), 1.0)


def test_all_orders_queries_and_images_are_drawn() -> None:
    textual = [make_task(VAGUE, BO, "textual", REWARD, np.random.default_rng(i)) for i in range(200)]
    visual = [make_task(PLAIN, BO, "visual", REWARD, np.random.default_rng(i)) for i in range(200)]
    assert len({made.segments for made in textual}) == 6
    assert {made.truth.index(1.0) for made in visual} == {0, 1}
    assert {made.query.text for made in visual if made.query} == {query for query, _ in ANSWERS}
    assert {id(made.query.image) for made in visual if made.query} == {id(image) for image in IMAGES}


def test_a_prompt_that_hints_at_nothing_has_no_right_segment() -> None:
    assert make_task(PLAIN, BO, "textual", REWARD, np.random.default_rng(0)).truth == (0.0, 0.0, 0.0)


def test_a_pathway_without_material_is_refused() -> None:
    bare = ConceptProfile(BO.concept, "", (), (), ())
    for prompt, profile, pathway in ((TWO, None, "visual"), (PLAIN, bare, "visual"), (VAGUE, bare, "textual")):
        with pytest.raises(ValueError, match=r"<bo>|two cats"):
            make_task(prompt, profile, pathway, REWARD, np.random.default_rng(0))  # type: ignore[arg-type]


def test_surrogate_items_exclude_the_answer() -> None:
    item = surrogate_item(make_task(VAGUE, BO, "textual", REWARD, np.random.default_rng(0)), DRAWN)
    assert (item.prompt, item.concept, item.reasoning, item.references) == (VAGUE.text, BO.concept, None, ())
    assert item.image is DRAWN


def test_reward_items_use_the_resolved_prompt() -> None:
    made = make_task(VAGUE, BO, "textual", REWARD, np.random.default_rng(0))
    item = reward_item(made, DRAWN, "<bo> has a blue kite", IMAGES[:2])
    assert (item.prompt, item.concept, len(item.references)) == (VAGUE.resolved, BO.concept, 2)
    assert item.reasoning is not None
    assert (item.reasoning.text, item.reasoning.segments, item.reasoning.truth) == (
        "<bo> has a blue kite",
        made.segments,
        made.truth,
    )
    assert (
        reward_item(make_task(PLAIN, BO, "visual", REWARD, np.random.default_rng(0)), DRAWN, "", ()).prompt
        == PLAIN.text
    )


def test_geneval_items_have_metadata_only() -> None:
    made = make_task(TWO, None, "none", REWARD, np.random.default_rng(0))
    assert (made.key, made.query) == ("counting/none", None)
    item = reward_item(made, DRAWN, "", IMAGES)
    assert (item.prompt, item.geneval) == ("two cats", TWO.geneval)
    assert (item.concept, item.reasoning, item.references) == (None, None, ())
    assert surrogate_item(made, DRAWN).prompt == "two cats"
