"""The order of the tasks of plain prompts, and their replacements."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.data.test_data import BO, EVERY
from trainer.data.source import PromptTasks, SyncR1Tasks, TaskSource
from trainer.types import Line, Prompt, RewardSpec, Task

REWARD = RewardSpec({"pickscore": 0.5, "hps": -0.5}, aggregation="gdpo")
PROMPTS = tuple(Prompt(f"prompt {i}", "prompt") for i in range(7))


def texts(tasks: list[Task]) -> list[str]:
    return [task.prompt.text for task in tasks]


def test_a_plain_prompt_is_drawn_without_a_query() -> None:
    for task in PromptTasks(PROMPTS, REWARD, (0,), 5).tasks(0):
        assert (task.reward, task.pathway, task.query, task.profile) == (REWARD, "none", None, None)
        assert task.key == "prompt/none"  # one threshold for all plain prompts


@given(st.integers(0, 50), st.integers(0, 10**6), st.integers(1, 9))
def test_a_step_follows_from_seed_and_number_alone(step: int, seed: int, count: int) -> None:
    """`prompts_per_step` does not change the order."""
    single = PromptTasks(PROMPTS, REWARD, (seed,))
    one_by_one = [single.tasks(i)[0] for i in range(step * count, (step + 1) * count)]
    assert texts(PromptTasks(PROMPTS, REWARD, (seed,), count).tasks(step)) == texts(one_by_one)


@given(st.integers(0, 10**6))
def test_every_pass_has_each_prompt_once(seed: int) -> None:
    drawn = texts([PromptTasks(PROMPTS, REWARD, (seed,)).tasks(i)[0] for i in range(70)])
    passes = [tuple(drawn[i : i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(one) == sorted(p.text for p in PROMPTS) for one in passes)
    assert len(set(passes)) > 5


def test_seeds_give_other_orders() -> None:
    assert len({tuple(texts(PromptTasks(PROMPTS, REWARD, (seed,), 7).tasks(0))) for seed in range(20)}) > 15


SOURCES = [PromptTasks(PROMPTS, REWARD, (3,), 2), SyncR1Tasks(EVERY, {"<bo>": BO}, REWARD, (3,), 2, 0.4)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_replacements_follow_from_the_step(source: TaskSource) -> None:
    """A resumed run replaces a flat group by the same prompt, however many are asked for."""
    for step in (0, 1, 9):
        again = texts(source.replacements(step, 6))
        assert texts(source.replacements(step, 2)) == again[:2]
        assert texts(source.replacements(step, 6)) == again
    orders = {tuple(texts(source.replacements(step, 5))) for step in range(20)}
    assert len(orders) > 15
    assert source.replacements(0, 0) == []


def test_replacements_are_other_prompts() -> None:
    source = PromptTasks(PROMPTS, REWARD, (0,), 3)
    for step in range(20):
        own, others = texts(source.tasks(step)), texts(source.replacements(step, 4))
        assert len({*own, *others}) == len(set(own)) + 4
    assert texts(PromptTasks(PROMPTS[:1], REWARD, (0,)).replacements(0, 2)) == ["prompt 0"] * 2  # there is no other


def test_the_same_question_about_another_image_is_another() -> None:
    lines = [Line("Is it red?", "prompt", image=Path(f"{i}.png")) for i in range(4)]
    source = PromptTasks(lines, REWARD, (0,), 2)
    for step in range(20):
        own = [task.prompt for task in source.tasks(step)]
        assert all(task.prompt not in own for task in source.replacements(step, 2))


def test_replacements_keep_the_mix_and_the_rewards() -> None:
    drawn = SOURCES[1].replacements(0, 100)
    assert [task.pathway for task in drawn].count("none") == 40
    geneval = RewardSpec({"geneval": 1.0}, aggregation=REWARD.aggregation)
    assert all(task.reward == (geneval if task.pathway == "none" else REWARD) for task in drawn)
