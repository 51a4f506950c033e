"""Evaluation with a fake policy: random numbers follow from seed and index, rewards match their rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from synod.contracts import Pixels, ScoreItem
from synod.errors import SettingsError, Unavailable
from tests.unit.trainer.reward_services import Judge, brightness
from trainer.data.source import GENEVAL
from trainer.distributed import Ranks
from trainer.evaluate.compare import paired
from trainer.evaluate.heldout import SHOWN, draw, evaluate, held_out, image_files, load_evaluation, save_evaluation
from trainer.scenarios import reflection_task
from trainer.settings import TrainerSettings
from trainer.types import Condition, Line, Modality, Query, Reward, RewardSpec, Seed, Task

TEXT = "[trainer.policy.sampler]\ndenoising_steps = 3\nmax_new_tokens = 2\n[trainer.screen]\npreview_batch_size = 4\n"


@dataclass(frozen=True)
class Said:
    kind: ClassVar[Modality] = "text"
    step: ClassVar[int] = 1
    prompt: str
    text: str


@dataclass(frozen=True)
class Painted:
    kind: ClassVar[Modality] = "image"
    text: ClassVar[str] = ""
    prompt: str
    seed: Seed
    step: int = 0


class Painter:
    """Answers with its query and seed, and paints a gray that follows from the seed; records its inputs."""

    module = nn.Module()
    image_steps = 3

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.seeds: list[Seed] = []

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[Said]:
        return [Said(q.text, f"{q.text[:4]} {seed[-1]}") for q, seed in zip(queries, seeds, strict=True)]

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Painted]:
        assert not torch.is_grad_enabled()
        self.prompts += prompts
        self.seeds += seeds
        return [Painted(*both) for both in zip(prompts, seeds, strict=True)]

    def denoise(self, segments: Sequence[Any], until: int) -> list[Painted]:
        return [replace(segment, step=until) for segment in segments]

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def images(self, segments: Sequence[Any]) -> list[Pixels]:
        assert all(s.step == 3 for s in segments)
        grays = [np.random.default_rng(s.seed).integers(0, 256) for s in segments]
        return [np.full((2, 2, 3), gray, np.uint8) for gray in grays]


class Critic(Painter):
    """Finds that every image shows its prompt, gives feedback all the same, and redraws the image."""

    said: ClassVar[str] = "<answer>Yes</answer> No cat is missing."

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[Said]:
        return [Said(query.text, self.said) for query in queries]

    def edit(self, conditions: Sequence[Condition], seeds: Sequence[Seed]) -> list[Painted]:
        return self.start([one.text for one in conditions], seeds)


class Late(Judge):
    """Rewards brightness when a result is awaited, the last request first; `broken` images have no reward."""

    def __init__(self, gain: float = 0.0, broken: Sequence[int] = ()) -> None:
        count = itertools.count()
        super().__init__(lambda item: None if next(count) in broken else brightness(item) + gain)
        self._held: list[tuple[Future[list[Reward]], list[Reward]]] = []

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        rewards, judge = super().submit(items, reward).result(), self

        class Pending(Future[list[Reward]]):
            def result(self, timeout: float | None = None) -> list[Reward]:
                while judge._held:
                    future, rewards = judge._held.pop()
                    future.set_result(rewards)
                return super().result(timeout)

        self._held.append((Pending(), rewards))
        return self._held[-1][0]


@pytest.fixture
def settings(settings_from: Callable[..., TrainerSettings]) -> TrainerSettings:
    return settings_from(TEXT, DATA__GENEVAL_SHARE="0.4", EVALUATE__PROMPTS="30")


@pytest.fixture
def tasks(settings: TrainerSettings) -> list[Task]:
    return held_out(settings)


def test_held_out_prompts_follow_the_training_mix(settings: TrainerSettings, tasks: list[Task]) -> None:
    pathways = [task.pathway for task in tasks]
    assert [pathways.count(p) for p in ("visual", "textual", "none")] == [9, 9, 12]
    assert {task.prompt.tag for task in tasks if task.pathway == "none"} == {"colors", "counting"}
    message = [(e.key, e.prompt.text, e.query and e.query.text) for e in tasks]
    assert message == [(e.key, e.prompt.text, e.query and e.query.text) for e in held_out(settings)]


def test_rows_match_their_tasks_and_images(settings: TrainerSettings, tasks: list[Task]) -> None:
    policy, judge = Painter(), Late()
    found = evaluate(policy, judge, tasks, settings)
    assert [(r.key, r.prompt, r.pathway) for r in found.rows] == [(e.key, e.prompt.text, e.pathway) for e in tasks]
    brightness = [int(image[0, 0, 0]) for image in policy.images([Painted("", seed, 3) for seed in policy.seeds])]
    assert [row.reward for row in found.rows] == pytest.approx([b / 255 for b in brightness])
    assert {place: int(p[0, 0, 0]) for place, p in found.images.items()} == dict(enumerate(brightness[:SHOWN]))
    for row, task, prompt in zip(found.rows, tasks, policy.prompts, strict=True):
        assert (row.answer == "") == (task.pathway == "none")
        assert prompt == (f"{row.prompt}. {row.answer}" if row.answer else row.prompt)
        assert (row.right is None) == (task.pathway == "none")
    for reward, items in judge.asked:
        for item in items:
            concept = reward == RewardSpec(ensemble="sync_r1")
            assert concept or reward == GENEVAL
            assert (item.geneval is None, item.reasoning is not None, len(item.references) == 2) == (concept,) * 3


def test_a_verdict_is_read_without_its_feedback(settings: TrainerSettings) -> None:
    """The feedback of this one has the other verdict's word."""
    lines = [Line("two cats", "cats", segments=("Yes", "No"), truth=truth) for truth in ((1.0, 0.0), (0.0, 1.0))]
    image = np.zeros((2, 2, 3), np.uint8)
    tasks = [reflection_task(line, image, "Does it show {prompt}?", RewardSpec({"ber": 1.0})) for line in lines]
    rows = evaluate(Critic(), Judge(), tasks, settings).rows
    assert [row.right for row in rows] == [True, False]
    assert [row.answer for row in rows] == [Critic.said] * 2


def test_random_numbers_follow_from_seed_and_index(
    settings: TrainerSettings, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(settings: TrainerSettings, tasks: list[Task]) -> tuple[list[Seed], list[str]]:
        policy = Painter()
        rows = evaluate(policy, Late(), tasks, settings).rows
        return policy.seeds, [row.answer for row in rows]

    seeds, answers = drawn(settings, tasks)
    assert len(set(seeds)) == len(tasks)
    screen, fewer = settings.screen.model_copy(update={"preview_batch_size": 7}), tasks[:9]
    found, said = drawn(settings.model_copy(update={"screen": screen}), fewer)
    assert found == seeds[:9]
    assert said == answers[:9]
    monkeypatch.setattr("trainer.evaluate.heldout.SEED", 1)
    assert not set(drawn(settings, fewer)[0]) & set(seeds)


def test_ranks_share_batches_and_divide_none(
    settings: TrainerSettings, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty tasks in batches of four: rank 1 of 3 draws the batches 1, 4 and 7, of which the last has two."""
    drawn = []

    def recorded(policy: Any, tasks: Sequence[Task], places: range) -> Any:
        drawn.append(places)
        return draw(policy, tasks, places)

    monkeypatch.setattr("trainer.evaluate.heldout.draw", recorded)
    monkeypatch.setattr(Ranks, "gather_all", lambda ranks, document: [document] * ranks.world)
    found = evaluate(Painter(), Judge(), tasks, settings, ranks=Ranks(1, 3))
    assert drawn == [range(4, 8), range(16, 20), range(28, 30)]
    assert sorted(found.images) == [4, 5, 6, 7, 16, 17, 18, 19]


def test_a_missing_reward_drops_only_its_pair(settings: TrainerSettings, tasks: list[Task]) -> None:
    before = evaluate(Painter(), Late(), tasks, settings)
    after = evaluate(Painter(), Late(gain=0.25, broken=(4, 11)), tasks, settings)
    lost = [row for row in after.rows if row.reward is None]
    assert [row.failure for row in lost] == ["scorer_failed"] * 2
    change = paired(before, after)["reward"]
    assert (change.n, change.dropped) == (28, 2)
    assert change.difference == pytest.approx(0.25)
    assert change.stderr == pytest.approx(0.0, abs=1e-12)


def test_rows_have_image_part_and_verdict(settings: TrainerSettings, tasks: list[Task]) -> None:
    class Detailed(Judge):
        def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
            future: Future[list[Reward]] = Future()
            geneval = reward == GENEVAL
            future.set_result(
                [Reward(0.5, fixed={} if geneval else {"tier": 0.2}, official=1.0 if geneval else None)] * len(items)
            )
            return future

    for found in evaluate(Painter(), Detailed(), tasks, settings).rows:
        geneval = found.pathway == "none"
        assert (found.image_part, found.official) == ((0.5, 1.0) if geneval else (0.3, None))


def test_an_unavailable_service_ends_the_evaluation(settings: TrainerSettings, tasks: list[Task]) -> None:
    class Lost(Judge):
        def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
            future: Future[list[Reward]] = Future()
            future.set_exception(Unavailable("gone"))
            return future

    policy = Painter()
    with pytest.raises(Unavailable, match="gone"):
        evaluate(policy, Lost(), tasks, settings)
    assert len(policy.prompts) == settings.screen.preview_batch_size


def test_an_evaluation_is_saved_and_loaded(tmp_path: Path, settings: TrainerSettings, tasks: list[Task]) -> None:
    found, path = evaluate(Painter(), Late(broken=(2,)), tasks, settings), tmp_path / "evaluation/before.json"
    save_evaluation(path, found)
    loaded = load_evaluation(path)
    assert loaded.rows == found.rows
    assert loaded.conditions == found.conditions
    drawn = [np.asarray(Image.open(file)) for file in image_files(path)]
    np.testing.assert_array_equal(np.stack(drawn), np.stack([found.images[i] for i in range(SHOWN)]))
    assert len(drawn) == SHOWN
    assert paired(found, loaded)["reward"].difference == 0.0


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"conditions": {}, "rows": [{"key": "k"}]}'])
def test_another_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileNotFoundError):
        load_evaluation(tmp_path / "before.json")
    (tmp_path / "before.json").write_text(text)
    with pytest.raises(SettingsError, match=r"before\.json is not an evaluation"):
        load_evaluation(tmp_path / "before.json")


def test_other_samplers_are_other_conditions(settings: TrainerSettings, tasks: list[Task]) -> None:
    sampler = settings.policy.sampler.model_copy(update={"guidance_scale": 3.0})
    policy = settings.policy.model_copy(update={"sampler": sampler})
    other = evaluate(Painter(), Judge(), tasks, settings.model_copy(update={"policy": policy}))
    with pytest.raises(SettingsError, match="differ in prompts or settings"):
        paired(evaluate(Painter(), Judge(), tasks, settings), other)
