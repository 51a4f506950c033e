"""The turns of UniRL-Zero's scenarios: what is said and drawn from what, and what each result is scored on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from synod.errors import SettingsError
from synod.images import encode_png
from tests.unit.trainer.data.test_lines import LINES
from tests.unit.trainer.flow_toy import FlowToy
from tests.unit.trainer.loops import draw, tasks
from tests.unit.trainer.reward_services import Judge
from trainer.data.source import wanted_rewards
from trainer.evaluate.heldout import conditions, evaluate, held_out
from trainer.groups import ScoredGroup
from trainer.policy.flow.segments import Sampler
from trainer.report.metrics import SAMPLES, Metrics, read
from trainer.report.page import write_report
from trainer.report.records import log_images
from trainer.scenarios import element, feedback, reward_item, surrogate_item
from trainer.settings import FlowSettings, TrainerSettings, load
from trainer.types import RewardSpec

SAMPLER = Sampler.of(4, shift=3.0, eta=0.7)
SOURCE = np.full((2, 2, 3), 90, np.uint8)
TOML = """[trainer]
run_dir = "run"
reward_batch_size = 4
[trainer.policy]
family = "flow"
model = "./model"
sampler = {{ denoising_steps = 4 }}
language = {{ model = "./words" }}
edits = true
[trainer.data]
task = "{task}"
prompts = "lines.jsonl"
heldout = "lines.jsonl"
{query}
{terms}
[trainer.loss]
micro_batch = 4
text = {{ beta = 0.0 }}
image = {{ beta = 0.0 }}
[trainer.evaluate]
prompts = 2
[trainer.screen]
group_size = 4
preview_batch_size = 4
threshold = "none"
screen_fraction = 0.5
"""
COT = 'query = "Describe {prompt}"'
TERMS = {
    "questions": ["answer"],
    "edits": ["image", "cycled"],
    "reflection": ["answer", "image"],
    "prompts": ["image"],
    "asked": ["image", "answer"],
}


def settings_of(folder: Path, scenario: str, more: str = "") -> TrainerSettings:
    """Settings of a scenario with one line, and one term for each of its results."""
    task = "prompts" if scenario == "asked" else scenario
    line = LINES.get(task, {"prompt": "two cats", "tag": "counting", "include": [{"class": "cat", "count": 2}]})
    (folder / "lines.jsonl").write_text(json.dumps({**line, "image": "cat.png"} if task in LINES else line) + "\n")
    for name in ("model", "words"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "cat.png").write_bytes(encode_png(SOURCE))
    terms = "".join(f'[[trainer.rewards.terms]]\nof = "{of}"\nscorer = "{of}_scorer"\n' for of in TERMS[scenario])
    path = folder / "train.toml"
    path.write_text(TOML.format(task=task, query=COT if scenario == "asked" else "", terms=terms) + more)
    return load(path, {})


def scored(item: Any) -> float:
    """A number that differs between images and between answers."""
    said = 0.0 if item.reasoning is None else len(item.reasoning.text)
    return said + (0.0 if item.image is None else float(item.pixels().mean()) / 255)


def drawn(settings: TrainerSettings, policy: FlowToy) -> tuple[ScoredGroup, dict[str, Any]]:
    """The group of step 0, and the items of its requests by scorer."""
    judge = Judge(scored)
    (group,), _ = draw(policy, judge, settings)
    return group, {name: items for spec, items in judge.asked for name in spec.scorers}


def kinds(group: ScoredGroup) -> list[str]:
    return [segment.kind for segment in group.rollouts[0].segments]


@pytest.fixture
def toy() -> FlowToy:
    return FlowToy(SAMPLER)


def test_a_question_is_answered_and_nothing_is_drawn(tmp_path: Path, toy: FlowToy) -> None:
    group, items = drawn(settings_of(tmp_path, "questions"), toy)
    assert kinds(group) == ["text"]
    assert group.images == (None,) * 4
    assert (group.previews.images, group.previews.step) == ((), 0)
    (item, *_) = items["answer_scorer"]
    assert (item.image, item.prompt, item.reasoning.segments) == (None, "Is it red?", ("Yes", "No"))
    query = group.previews.task.query
    assert query is not None
    assert np.array_equal(query.image, SOURCE)  # type: ignore[arg-type]
    assert [reward.value for reward in group.rewards] == [len(answer) for answer in group.answers]


def test_an_edit_is_edited_back(tmp_path: Path, toy: FlowToy) -> None:
    group, items = drawn(settings_of(tmp_path, "edits"), toy)
    assert kinds(group) == ["image", "image"]
    for place, rollout in enumerate(group.rollouts):
        edit, back = (segment.condition for segment in rollout.segments)  # type: ignore[attr-defined]
        assert (edit.text, back.text) == ("make it snow", "remove the snow")
        assert np.array_equal(edit.source, SOURCE)
        assert np.array_equal(back.source, group.images[place])  # the edited image
        edited, cycled = items["image_scorer"][place], items["cycled_scorer"][place]
        assert (edited.prompt, edited.source_prompt, cycled.prompt) == ("a cat in snow", "a cat", "a cat")
        assert all(np.array_equal(one.references[0], SOURCE) for one in (edited, cycled))
        assert np.array_equal(edited.image, group.images[place])
        assert not np.array_equal(cycled.image, edited.image)
        assert group.rewards[place].value == pytest.approx(scored(edited) + scored(cycled))


def test_a_prompt_is_refined_by_the_answer(tmp_path: Path, toy: FlowToy) -> None:
    group, items = drawn(settings_of(tmp_path, "asked"), toy)
    assert kinds(group) == ["text", "image"]
    said, image = group.rollouts[0].segments
    assert (said.prompt, image.prompt) == ("Describe two cats", f"two cats. {said.text}")
    assert items["image_scorer"][0].geneval.tag == "counting"
    assert items["answer_scorer"][0].image is None


def test_an_image_is_redrawn_by_the_feedback(tmp_path: Path, toy: FlowToy) -> None:
    settings = settings_of(tmp_path, "reflection")
    group, items = drawn(settings, toy)
    assert kinds(group) == ["text", "image"]
    said, image = group.rollouts[0].segments
    assert 'the prompt "two cats"' in said.prompt
    assert image.prompt == f"two cats. {said.text}"
    assert np.array_equal(image.condition.source, SOURCE)  # type: ignore[attr-defined]
    assert items["answer_scorer"][0].reasoning.truth == (0.0, 1.0)
    assert items["image_scorer"][0].references == ()


def test_the_answer_element_and_the_feedback_are_separate() -> None:
    reply = " <answer>No</answer> one cat is missing "
    assert (element(reply), feedback(reply)) == ("No", "one cat is missing")
    assert (element("a cat. <answer>x</answer>"), feedback(" two ")) == ("a cat. <answer>x</answer>", "two")
    assert (element("<answer> </answer> yes"), feedback("<answer> </answer> yes")) == ("", "yes")


def test_each_turn_has_its_own_noise(tmp_path: Path, toy: FlowToy) -> None:
    group, _ = drawn(settings_of(tmp_path, "edits"), toy)
    starts = [segment.latent_SCHW[0] for rollout in group.rollouts for segment in rollout.segments]  # type: ignore[attr-defined]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


@pytest.mark.parametrize("scenario", list(TERMS))
def test_the_learner_computes_what_the_sampler_did(tmp_path: Path, toy: FlowToy, scenario: str) -> None:
    """Before the first update, at equal batch shapes, every ratio is 1; not so with a planted other guidance."""
    group, _ = drawn(settings_of(tmp_path, scenario), toy)
    assert log_ratio(toy, group) == 0
    if "image" in kinds(group):
        assert log_ratio(FlowToy(SAMPLER, learner_guidance=3.5), group) > 1e-3


def log_ratio(policy: FlowToy, group: ScoredGroup) -> float:
    """The largest |log-ratio| of all decisions of a group, in batches as they were drawn."""
    found = []
    for turn in zip(*(rollout.segments for rollout in group.rollouts), strict=True):
        for step in range(policy.steps(turn)):
            terms = policy.terms(turn, step)
            found.append((terms.new_BD - terms.old_BD)[terms.mask_BD].abs().max())
    return float(torch.stack(found).detach().max())


@pytest.mark.parametrize("scenario", list(TERMS))
def test_held_out_lines_are_evaluated(tmp_path: Path, toy: FlowToy, scenario: str) -> None:
    settings = settings_of(tmp_path, scenario)
    found = evaluate(toy, Judge(scored), held_out(settings), settings)
    assert [row.reward is not None for row in found.rows] == [True, True]
    assert set(found.images) == (set() if scenario == "questions" else {0, 1})
    (task,) = tasks(settings)
    assert wanted_rewards(settings)[0].spec.scorers.keys() <= task.reward.scorers.keys()


def test_a_preview_has_no_terms_of_a_later_image() -> None:
    spec = RewardSpec({"a": 4.0, "b": 1.0}, of={"a": "image", "b": "cycled"})
    assert spec.of_previews == RewardSpec({"a": 4.0}, of={"a": "image"})


@pytest.mark.parametrize(
    ("scenario", "more", "message"),
    [
        ("questions", "select = 'best_and_worst'", "data.task 'questions' draws no image to screen"),
        (
            "prompts",
            "[[trainer.rewards.terms]]\nof = 'cycled'\nscorer = 'x'",
            "'x' scores the result 'cycled', but roll",
        ),
        ("edits", "[[trainer.rewards.terms]]\nof = 'answer'\nscorer = 'x'", "'x' scores the result 'answer', but roll"),
    ],
)
def test_results_that_a_task_lacks_are_refused(tmp_path: Path, scenario: str, more: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(tmp_path, scenario, more)


@pytest.mark.parametrize(
    ("field", "named"),
    [("{prompt:{other}}", "prompt:{other}"), ("{prompt:d}", "prompt:d"), ("{prompt!r}", "prompt!r"), ("{a.b}", "a.b")],
)
def test_a_query_has_the_prompt_and_no_other_field(tmp_path: Path, field: str, named: str) -> None:
    """A field inside a format is one that no prompt fills."""
    settings = settings_of(tmp_path, "asked").model_dump()
    settings["data"]["query"] = f"Describe {field}"
    with pytest.raises(ValidationError, match=re.escape(f"the query has the fields ['{named}']")):
        TrainerSettings.model_validate(settings)


def test_a_screen_by_the_reward_needs_a_term_of_the_image(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "edits").model_dump()
    settings["rewards"]["terms"] = [{"of": "cycled", "scorer": "x"}, {"of": "image", "scorer": "y", "weight": 0.0}]
    TrainerSettings.model_validate(settings)
    settings["screen"] = {"group_size": 4}
    with pytest.raises(ValidationError, match="every term scores 'cycled', which a preview lacks"):
        TrainerSettings.model_validate(settings)
    settings["rewards"]["surrogate"] = "clip_t"
    TrainerSettings.model_validate(settings)


def test_an_edit_is_compared_with_what_the_policy_read(tmp_path: Path) -> None:
    """The middle of the source at the image's size; a scorer of previews gets that too, and no instruction."""
    settings = settings_of(tmp_path, "edits")
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    (tmp_path / "cat.png").write_bytes(encode_png(wide))
    (task,), image = tasks(settings), np.zeros((8, 8, 3), np.uint8)
    item = reward_item(task, image, "", ())
    (seen,) = item.references
    assert np.array_equal(seen, np.full((8, 8, 3), 200))
    preview = surrogate_item(task, image)
    assert (preview.prompt, preview.source_prompt) == (item.prompt, item.source_prompt) == ("a cat in snow", "a cat")
    assert np.array_equal(preview.references[0], seen)


def test_a_surrogate_scorer_is_asked_without_the_answer(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "asked").model_dump()
    settings["rewards"]["surrogate"], settings["screen"] = "format", {"group_size": 4}
    *_, wanted = wanted_rewards(TrainerSettings.model_validate(settings))
    assert (wanted.role, wanted.inputs) == ("surrogate", {"image", "prompt"})


def test_questions_have_no_image_for_held_out_scorers(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "questions").model_dump()
    settings["evaluate"]["scorers"] = {"clip_t": 1.0}
    assert all("image" not in one.inputs for one in wanted_rewards(TrainerSettings.model_validate(settings)))
    settings["evaluate"]["scorers"] = {"intrinsic": 1.0}
    with pytest.raises(ValidationError, match="names 'intrinsic', by which the policy describes an image"):
        TrainerSettings.model_validate(settings)


@pytest.mark.parametrize(("scenario", "trains"), [("questions", "image"), ("edits", "text"), ("prompts", "text")])
def test_a_run_that_would_train_nothing_is_refused(tmp_path: Path, scenario: str, trains: str) -> None:
    settings = settings_of(tmp_path, scenario).model_dump()
    settings["policy"]["trains"] = [trains]
    with pytest.raises(ValidationError, match=f"policy.trains \\['{trains}'\\], but rollouts of data.task"):
        TrainerSettings.model_validate(settings)
    settings["policy"]["language"]["bridge"] = "queries"
    if scenario != "questions":  # the image's gradient reaches the language model
        TrainerSettings.model_validate(settings)


@pytest.mark.parametrize("trains", [["text"], ["image", "text"]])
def test_trains_without_its_model_is_refused(tmp_path: Path, trains: list[str]) -> None:
    settings = settings_of(tmp_path, "prompts").model_dump()
    settings["policy"] |= {"language": None, "trains": trains}
    with pytest.raises(ValidationError, match=re.escape(f"trains {trains} names the language model, but")):
        TrainerSettings.model_validate(settings)
    for given in (["image"], None):
        settings["policy"]["trains"] = given
        policy = TrainerSettings.model_validate(settings).policy
        assert isinstance(policy, FlowSettings)
        assert policy.trained == ("image",)


def test_samples_of_questions_name_no_image(tmp_path: Path, toy: FlowToy) -> None:
    """Nor does the page show one."""
    group, _ = drawn(settings_of(tmp_path, "questions"), toy)
    run = tmp_path / "run"
    with Metrics(run) as metrics:
        log_images(metrics, run, 0, [group])
    (record,) = read(run, SAMPLES)
    assert [(one["answer"], "image" in one) for one in record["samples"]["finished"]] == [
        (answer, False) for answer in group.answers
    ]
    page = write_report(run).read_text()
    assert "<img" not in page
    assert all(f": {answer}</div>" in page for answer in group.answers)


def test_evaluations_by_another_query_are_not_comparable(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "asked")
    other = settings.model_copy(update={"data": settings.data.model_copy(update={"query": "Draw {prompt}"})})
    assert conditions(settings) != conditions(other)
    assert "query" not in conditions(settings_of(tmp_path, "prompts"))["data"]
