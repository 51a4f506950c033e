"""Prompts and concepts from files, and the order of tasks."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded import world
from synod.contracts import Concept, GenEvalClause, GenEvalMetadata
from synod.errors import SettingsError
from trainer.data.concepts import read_concepts, without_held_out
from trainer.data.prompts import read_concept_prompts
from trainer.data.source import GENEVAL as GENEVAL_REWARD
from trainer.data.source import SyncR1Tasks, heldout_tasks, training_tasks
from trainer.settings import TrainerSettings
from trainer.types import Aggregation, ConceptProfile, Pathway, Prompt, RewardSpec, Task

ROOT = Path(__file__).parents[4]
BO = ConceptProfile(
    Concept("animal", "dog", "<bo>"), "", (("q", "a"), ("q2", "a2")), ("f", "g"), (np.zeros((2, 2, 3), np.uint8),)
)
PLAIN = [Prompt(f"plain {i}", "plain", "<bo>") for i in range(4)]
VAGUE = [Prompt(f"vague {i}", "dense", "<bo>", fact=i % 2) for i in range(6)]
GENEVAL = [
    Prompt(f"{tag} {i}", tag, geneval=GenEvalMetadata(tag, (GenEvalClause("cat", 1),)))
    for tag, count in (("colors", 5), ("counting", 2), ("position", 9))
    for i in range(count)
]
REWARD = RewardSpec(ensemble="sync_r1")
HELD = '{"name": "<bo>", "class": "dog", "extra_info": ["<bo> sings"], "heldout": [true, false, true]}'
EVERY = [*PLAIN, *VAGUE, *GENEVAL]


def run(steps: int, seed: int = 0, groups: int = 1, share: float = 0.0) -> list[Task]:
    source = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (seed,), groups, share)
    return [task for step in range(steps) for task in source.tasks(step)]


def described(task: Task) -> tuple[object, ...]:
    """Everything that a task contains."""
    return task.key, task.prompt.text, task.query and task.query.text, task.segments, task.truth


def test_shipped_files_match_the_synthetic_world() -> None:
    concepts = read_concepts(ROOT / "embedded/data/concepts")
    prompts = read_concept_prompts(ROOT / "embedded/data/prompts/train.jsonl", concepts)
    assert set(concepts) == {card.name for card in world.CONCEPTS}
    bo, ours = world.profile_of("<bo>"), concepts["<bo>"]
    assert (ours.concept, ours.info) == (Concept("animal", "dog", "<bo>"), bo.info)
    assert ours.facts == tuple(fact.sentence for fact in bo.attributes)
    assert ours.answers == world.conversations(bo)
    for image, render in zip(ours.images, world.training_renders(bo), strict=True):
        assert np.array_equal(image, render.image)
    for prompt, theirs in zip(prompts, world.PROMPTS_TRAIN, strict=True):
        assert (prompt.text, prompt.tag, prompt.concept, prompt.geneval) == (
            theirs.text,
            theirs.task,
            theirs.concept,
            theirs.geneval,
        )
        if theirs.concept:
            assert prompt.resolved == world.resolve(theirs)


def test_concepts_and_prompts_are_read(world_dir: Path) -> None:
    concepts = read_concepts(world_dir / "concepts")
    assert concepts["<bo>"].facts == ("<bo> has a red hat", "<bo> has a blue kite")
    assert [image[0, 0, 0] for image in concepts["<bo>"].images] == [0, 60]
    prompts = read_concept_prompts(world_dir / "prompts.jsonl", concepts)
    assert Counter(p.tag for p in prompts) == {"plain": 3, "attribute": 4, "colors": 3, "counting": 1}
    assert prompts[-1].geneval == GenEvalMetadata("counting", (GenEvalClause("dog", 2),))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list where an object belongs"),
        ('{"tag": "plain"}', ".prompt: missing"),
        ('{"prompt": "x", "concept": "<bo>"}', ".tag: missing"),
        ('{"tag": "plain", "prompt": " ", "concept": "<bo>"}', "the prompt is empty"),
        ('{"tag": "plain", "prompt": "x", "concept": "<rex>"}', "unknown concept '<rex>'; give one of <bo>"),
        ('{"tag": "plain", "prompt": "a dog", "concept": "<bo>"}', "the prompt does not name <bo>"),
        ('{"tag": "plain", "prompt": "x"}', ".include: missing"),
        ('{"tag": "plain", "prompt": "x", "consept": "<bo>"}', ".consept: unknown key"),
        ('{"tag": "plain", "prompt": "x", "concept": "<bo>", "fact": 2}', ".fact: 2; give a whole number from 0 to 1"),
        ('{"tag": "plain", "prompt": "x", "concept": "<bo>", "include": []}', "'include' and 'concept' together"),
        ('{"tag": "c", "prompt": "x", "include": [{"class": "cat", "count": 0}]}', ".include[0].count: 0"),
    ],
)
def test_a_bad_line_is_named(world_dir: Path, line: str, message: str) -> None:
    path = world_dir / "prompts.jsonl"
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(SettingsError) as caught:
        read_concept_prompts(path, read_concepts(world_dir / "concepts"))
    assert message in str(caught.value)
    assert "prompts.jsonl:13" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("info.json", "{", "info.json is not valid JSON"),
        ("info.json", '{"name": "<bo>", "kind": "plant", "class": "fern", "info": ""}', "info.json.kind: 'plant'"),
        ("info.json", HELD, "heldout has 3 flags, but extra_info has 1 facts; give one for each"),
        ("conversations.json", '[{"query": "q"}]', "conversations.json[0].answer: missing"),
        ("conversations.json", '{"query": "q"}', "'query' is neither an image of the concept nor text_only"),
        ("conversations.json", '{"text_only": "q"}', "a string where a list belongs"),
        ("train/0.png", "GIF", "train/0.png: "),
        ("conversations.json", None, "conversations.json: No such file"),
        ("train", None, "no images"),
        ("../bo", None, "0 concepts"),
    ],
)
def test_a_bad_concept_is_named(world_dir: Path, name: str, content: str | None, message: str) -> None:
    path = world_dir / "concepts/bo" / name
    if content is None:
        path.rename(world_dir / "elsewhere")
    else:
        path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        read_concepts(world_dir / "concepts")
    assert message in str(caught.value)


def held_out(world_dir: Path, flags: list[bool]) -> None:
    info = world_dir / "concepts/bo/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "heldout": flags}))


def test_training_does_not_read_held_out_facts(world_dir: Path) -> None:
    held_out(world_dir, [True, False])
    path = world_dir / "prompts.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"fact": 0' not in line]
    path.write_text("\n".join(lines) + "\n")
    whole = read_concepts(world_dir / "concepts")
    read = read_concept_prompts(path, whole)
    concepts, prompts = without_held_out(whole, read, path)
    assert concepts["<bo>"].facts == ("<bo> has a blue kite",)
    assert {prompt.fact for prompt in prompts} == {None, 0}, "the second fact is now the first"
    assert [prompt.text for prompt in prompts] == [prompt.text for prompt in read]
    tasks = SyncR1Tasks(prompts, concepts, REWARD, (0,), 8).tasks(0)
    textual = [task for task in tasks if task.pathway == "textual"]
    assert textual
    for task in textual:
        assert (task.segments, task.truth) == (("<bo> has a blue kite",), (1.0,))
        assert task.query is not None
        assert "hat" not in task.query.text.replace("wearing its hat", "")


def test_a_training_prompt_about_a_held_out_fact_is_refused(settings_from: Callable[..., TrainerSettings]) -> None:
    settings = settings_from()
    held_out(settings.data.prompts.parent, [True, False])
    with pytest.raises(
        SettingsError, match=r"'0 <bo> wearing its hat' hints at fact 0 of <bo>, which the heldout of info"
    ):
        training_tasks(settings)
    evaluated = [one for one in heldout_tasks(settings, 0, 20) if one.pathway == "textual"]
    assert {one.prompt.fact for one in evaluated} == {0, 1}
    assert all(len(one.segments) == 2 for one in evaluated)


def test_two_folders_of_one_name_are_refused(world_dir: Path) -> None:
    shutil.copytree(world_dir / "concepts/bo", world_dir / "concepts/again")
    with pytest.raises(SettingsError, match="2 concept folders name 1 concepts"):
        read_concepts(world_dir / "concepts")


@settings(max_examples=30)
@given(st.integers(0, 300), st.integers(0, 10**6), st.integers(1, 4))
def test_a_step_follows_from_seed_and_number_alone(step: int, seed: int, groups: int) -> None:
    """A resumed run gets the same tasks, and `prompts_per_step` does not change their order."""
    source = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (seed,), groups, 0.4)
    again = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (seed,), groups, 0.4)
    assert [described(e) for e in source.tasks(step)] == [described(e) for e in again.tasks(step)]
    single = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (seed,), 1, 0.4)
    one_by_one = [single.tasks(i)[0] for i in range(step * groups, (step + 1) * groups)]
    assert [described(e) for e in source.tasks(step)] == [described(e) for e in one_by_one]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 0.95))
def test_pathways_are_one_to_one_and_shares_exact(seed: int, share: float) -> None:
    counts = Counter(e.pathway for e in run(100, seed, share=share))
    assert abs(counts["none"] - 100 * share) <= 1
    assert abs(counts["visual"] - counts["textual"]) <= 1


def test_pathways_come_in_no_fixed_order() -> None:
    firsts = [e.pathway for e in run(100)][::2]
    assert 10 < firsts.count("visual") < 40


def test_facts_make_a_prompt_textual() -> None:
    for task in run(60, share=0.3):
        expected = {"plain": "visual", "dense": "textual"}.get(task.prompt.tag, "none")
        assert task.pathway == expected
        assert (task.profile is None) == (expected == "none")
        assert task.reward == (GENEVAL_REWARD if expected == "none" else REWARD)


@pytest.mark.parametrize(("pathway", "pool"), [("visual", PLAIN), ("textual", VAGUE)])
def test_prompts_repeat_only_after_a_full_pass(pathway: str, pool: list[Prompt]) -> None:
    texts = [e.prompt.text for e in run(200, seed=5) if e.pathway == pathway]
    epochs = [texts[i : i + len(pool)] for i in range(0, len(texts) - len(pool), len(pool))]
    assert all(sorted(epoch) == sorted(p.text for p in pool) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_geneval_tags_are_balanced() -> None:
    met = [e.prompt for e in run(90, share=1.0)]
    rounds = [tuple(p.tag for p in met[i : i + 3]) for i in range(0, 90, 3)]
    assert all(sorted(turn) == ["colors", "counting", "position"] for turn in rounds)
    assert len(set(rounds)) > 3
    positions = [p.text for p in met if p.tag == "position"]
    assert len(set(positions[:9])) == 9


def test_seeds_differ() -> None:
    assert [described(e) for e in run(20, 0)] != [described(e) for e in run(20, 1)]


def test_a_repeated_prompt_gets_a_new_query() -> None:
    queries = {(e.prompt.text, e.segments) for e in run(200) if e.pathway == "textual"}
    assert len(queries) > len(VAGUE)


@pytest.mark.parametrize(("pathway", "pool"), [("visual", PLAIN), ("textual", VAGUE)])
def test_one_pathway_leaves_out_the_others_prompts(pathway: Pathway, pool: list[Prompt]) -> None:
    source = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (3,), len(pool), 0.0, (pathway,))
    assert SyncR1Tasks(pool, {"<bo>": BO}, REWARD, (3,), len(pool), 0.0, (pathway,)).tasks(1)
    for step in range(4):
        tasks = source.tasks(step)
        assert {task.pathway for task in tasks} == {pathway}
        assert sorted(task.prompt.text for task in tasks) == sorted(prompt.text for prompt in pool)


def test_without_pathways_the_same_prompts_are_drawn_as_they_are() -> None:
    """The scorer follows the prompt: concept prompts keep their reward, and only GenEval's have GenEval's."""
    whole = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (3,), 60, 0.4).tasks(0)
    bare = SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (3,), 60, 0.4, ()).tasks(0)
    assert [task.prompt.text for task in bare] == [task.prompt.text for task in whole]
    for task in bare:
        assert (task.pathway, task.query, task.segments) == ("none", None, ())
        assert task.reward == (REWARD if task.prompt.geneval is None else GENEVAL_REWARD)
        assert task.profile is (BO if task.prompt.geneval is None else None)
        assert task.key == ("<bo>/none" if task.profile else f"{task.prompt.tag}/none")
    assert SyncR1Tasks(PLAIN, {"<bo>": BO}, REWARD, (3,), 4, 0.0, ()).tasks(0)  # no prompt with a fact is needed


@pytest.mark.parametrize(
    ("prompts", "share", "message"),
    [
        (PLAIN, 0.0, "no prompt with a fact among 4"),
        (GENEVAL, 0.5, "no prompt without a fact and none with a fact among 16, with geneval_share 0.5"),
        ([*PLAIN, *VAGUE], 0.1, "no prompt of GenEval"),
    ],
)
def test_an_empty_pool_is_named(prompts: list[Prompt], share: float, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SyncR1Tasks(prompts, {"<bo>": BO}, REWARD, (0,), 1, share)


def test_questions_without_the_name_are_reported(settings_from: Callable[..., TrainerSettings]) -> None:
    said: list[str] = []
    training_tasks(settings_from(), said.append)
    assert len(said) == 1
    assert "1 of 2 questions do not name <bo>, such as 'which color?'" in said[0]
    training_tasks(settings_from(DATA__PATHWAYS='["textual"]'), said.append)
    assert len(said) == 1, "that pathway asks none of them"


def test_a_concept_with_a_single_answer_is_refused() -> None:
    """Every reward of TIER would be the same; without the visual pathway nothing is asked about the images."""
    alike = replace(BO, answers=(("q", "a"), ("q2", "a")))
    with pytest.raises(SettingsError, match=r'<bo>: .* one answer, .*conversations\.json.* \["textual"\]'):
        SyncR1Tasks(EVERY, {"<bo>": alike}, REWARD, (0,))
    assert SyncR1Tasks(EVERY, {"<bo>": alike}, REWARD, (0,), 1, 0.0, ("textual",)).tasks(0)
    assert SyncR1Tasks(EVERY, {"<bo>": replace(alike, others=("b",))}, REWARD, (0,)).tasks(0)


@pytest.mark.parametrize("aggregation", ["sum", "gdpo"])
def test_all_rewards_of_a_run_are_aggregated_alike(aggregation: Aggregation) -> None:
    """Or the advantages of a step would have two scales."""
    source = SyncR1Tasks(EVERY, {"<bo>": BO}, RewardSpec({"ber": 1.0}, aggregation=aggregation), (0,), 20, 0.5)
    tasks = source.tasks(0)
    assert {task.reward.aggregation for task in tasks} == {aggregation}
    assert {tuple(task.reward.scorers) for task in tasks} == {("ber",), ("geneval",)}


def test_an_unused_pool_may_be_empty() -> None:
    assert SyncR1Tasks(GENEVAL, {}, REWARD, (0,), 2, 1.0).tasks(3)[0].pathway == "none"
    assert SyncR1Tasks([*PLAIN, *VAGUE], {"<bo>": BO}, REWARD, (0,)).tasks(0)[0].pathway != "none"
