"""Choose the tasks of each step from (seed, step). Nothing here holds state, so a resumed run gets the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from synod.errors import SettingsError
from trainer.data.concepts import read_concepts, without_held_out
from trainer.data.lines import read_lines
from trainer.data.prompts import read_concept_prompts, read_prompts
from trainer.personalize.records import load_image, notify_unnamed
from trainer.rewards.served import Wanted
from trainer.scenarios import asked_task, edit_task, make_task, question_task, reflection_task
from trainer.settings import (
    INTRINSIC,
    DataSettings,
    EditSettings,
    PromptSettings,
    QuestionSettings,
    ReflectionSettings,
    RewardSettings,
    SyncR1Settings,
    TrainerSettings,
)
from trainer.settings.data import TEMPLATES
from trainer.types import ConceptProfile, Line, Pathway, Prompt, RewardSpec, Task

GENEVAL: Final = RewardSpec({"geneval": 1.0})  # the reward of Sync-R1's prompts without a concept
LinesSettings = PromptSettings | QuestionSettings | EditSettings | ReflectionSettings
_PLAIN: Final = frozenset({"image", "prompt"})  # what the items of every prompt have
_MILLION: Final = 1_000_000
_POOLS: Final[Mapping[Pathway, str]] = {"visual": "without a fact", "textual": "with a fact"}  # prompts of a pathway
# Streams of random numbers; append new ones, so that the existing ones stay the same.
_COIN, _VISUAL, _TEXTUAL, _TAG, _GENEVAL, _REASON, _PROMPT, _REPLACEMENT = range(8)


class TaskSource(Protocol):
    """The sequence of training tasks."""

    def tasks(self, step: int) -> list[Task]:
        """Return the `prompts_per_step` tasks of step 0, 1, ..."""
        ...

    def replacements(self, step: int, count: int) -> list[Task]:
        """Return tasks to draw in place of those of step 0, 1, ...; the first of them do not depend on `count`."""
        ...


def training_tasks(settings: TrainerSettings, log: Callable[[str], None] = print) -> TaskSource:
    """Read the training prompts. `log` receives messages for the user. Raises SettingsError."""
    count = settings.prompts_per_step
    return _source(settings.data, settings.rewards, settings.data.prompts, settings.seed, count, log, trains=True)


def heldout_tasks(settings: TrainerSettings, seed: int, count: int) -> list[Task]:
    """Return `count` tasks of the held-out prompts, in the mix of the training.

    A small pool's prompts repeat after each was used once. Raises SettingsError.
    """
    if settings.data.heldout is None:
        raise SettingsError("[trainer.data] names no held-out prompts; give heldout = a file of prompts")
    source = _source(settings.data, settings.rewards, settings.data.heldout, seed, count, lambda message: None)
    return source.tasks(0)


def wanted_rewards(settings: TrainerSettings) -> list[Wanted]:
    """Return every reward that the run asks the service for, with what its items have.

    Raises SettingsError for the prompts.
    """
    data, spec = settings.data, _spec(settings.rewards)
    if not isinstance(data, SyncR1Settings):
        files = [data.prompts] if data.heldout is None else [data.prompts, data.heldout]
        prompts = [prompt for path in files for prompt in _read(data, path, lambda message: None, check_images=True)]
        inputs = _PLAIN | ({"geneval"} if all(prompt.geneval for prompt in prompts) else set())
        inputs |= {"reasoning"} if data.has_answers else set()
        inputs -= set() if "image" in data.results else {"image"}
        wanted = [Wanted(spec, inputs)]
        if isinstance(data, EditSettings):
            inputs |= {"references", "source_prompt"}
            of = {"image": inputs, "cycled": inputs - {"source_prompt"}}
            wanted = [Wanted(part, of[result]) for result, part in spec.parts().items()]
    else:
        inputs = _PLAIN | {"concept"}
        whole = inputs | {"references"} | ({"reasoning"} if data.has_answers else set())
        concepts = [Wanted(spec, whole)] if data.geneval_share < 1 else []
        wanted = [*concepts, *([Wanted(GENEVAL, _PLAIN | {"geneval"})] if data.geneval_share else [])]
    if settings.evaluate.scorers:
        known = frozenset[str]().union(*(one.inputs for one in wanted))
        wanted.append(Wanted(RewardSpec(settings.evaluate.scorers), known, "held-out scorer"))
    if settings.screen.is_on and settings.rewards.surrogate == "known":
        wanted = [replace(one, known="reasoning" in one.inputs) for one in wanted]
    if settings.screen.is_on and not settings.rewards.is_screened_by_reward:
        seen = inputs - {"geneval", "reasoning"}  # of `surrogate_item`
        wanted.append(Wanted(RewardSpec({settings.rewards.surrogate: 1.0}), seen, "surrogate"))
    if not settings.is_own_teacher:
        return wanted
    return [replace(one, spec=own) for one in wanted if (own := one.spec.without(INTRINSIC)) is not None]


def _spec(rewards: RewardSettings) -> RewardSpec:
    return RewardSpec(rewards.weights, rewards.ensemble, rewards.aggregation, rewards.results)


def _source(
    data: DataSettings,
    rewards: RewardSettings,
    path: Path,
    seed: int,
    count: int,
    log: Callable[[str], None],
    *,
    trains: bool = False,
) -> TaskSource:
    if not isinstance(data, SyncR1Settings):
        return PromptTasks(_read(data, path, log), _spec(rewards), (seed,), count, _maker(data))
    concepts = read_concepts(data.concepts)
    prompts = read_concept_prompts(path, concepts)
    if trains:
        concepts, prompts = without_held_out(concepts, prompts, path)
        for name, profile in concepts.items() if "visual" in data.pathways else ():
            notify_unnamed(name, [query for query, _ in profile.answers], data.concepts, log)
    mix = data.geneval_share, data.pathways, data.template
    return SyncR1Tasks(prompts, concepts, _spec(rewards), (seed,), count, *mix)


def _read(
    data: LinesSettings, path: Path, log: Callable[[str], None], *, check_images: bool = False
) -> tuple[Prompt, ...]:
    """Read the prompts of one file. Raises SettingsError."""
    if isinstance(data, PromptSettings):
        return read_prompts(path, data.column, log)
    return read_lines(path, data.task, check_images=check_images)


Make = Callable[[Prompt, RewardSpec], Task]


def drawn_task(prompt: Prompt, reward: RewardSpec) -> Task:
    """Create the task of a prompt that is drawn as it is."""
    return make_task(prompt, None, "none", reward, np.random.default_rng(0))  # it draws nothing


def _maker(data: LinesSettings) -> Make:
    """Return how the task of a prompt is made; a line's image is read then."""
    if isinstance(data, PromptSettings):
        template = data.query
        return drawn_task if template is None else lambda prompt, reward: asked_task(prompt, template, reward)
    query = data.query if isinstance(data, ReflectionSettings) else ""

    def made(line: Prompt, reward: RewardSpec) -> Task:
        assert isinstance(line, Line)
        image = None if line.image is None else load_image(line.image)
        if data.task == "questions":
            return question_task(line, image, reward)
        assert image is not None
        return edit_task(line, image, reward) if data.task == "edits" else reflection_task(line, image, query, reward)

    return made


@dataclass(frozen=True)
class PromptTasks:
    """Each prompt once in every pass over them, in an order of its own. `seed` is the key of the random numbers."""

    prompts: Sequence[Prompt]
    reward: RewardSpec
    seed: tuple[int, ...]
    prompts_per_step: int = 1
    make: Make = drawn_task

    def tasks(self, step: int) -> list[Task]:
        return [self.make(prompt, self.reward) for prompt in self._chosen(step)]

    def replacements(self, step: int, count: int) -> list[Task]:
        """Return other prompts than the step's own, as long as there are any."""
        taken = self._chosen(step)
        others = [prompt for prompt in self.prompts if prompt not in taken] or self.prompts
        stream = (*self.seed, _REPLACEMENT, step)
        return [self.make(_pick(others, index, stream), self.reward) for index in range(count)]

    def _chosen(self, step: int) -> list[Prompt]:
        first = step * self.prompts_per_step
        return [
            _pick(self.prompts, index, (*self.seed, _PROMPT)) for index in range(first, first + self.prompts_per_step)
        ]


@dataclass(frozen=True)
class SyncR1Tasks:
    """Prompts about concepts on both reasoning pathways, and GenEval's prompts.

    Concept prompts come in pairs of one visual and one textual pathway, in random order (1:1 in Sync-R1): prompts that
    hint at a fact are textual, the others visual. With one of the `pathways` only its prompts are drawn; with none the
    prompts are those of both in the same order, drawn without reasoning. `geneval_share` of all prompts are GenEval's,
    in rounds of one prompt of each tag, rewarded by GenEval's scorer; `reward` is that of the concept prompts, whatever
    their pathway. Each pool is shuffled for every pass over it. `seed` is the key of the random numbers. Raises
    SettingsError if a needed pool is empty, and for a concept of the visual pathway whose images have one answer alone.
    """

    prompts: Sequence[Prompt]
    concepts: Mapping[str, ConceptProfile]
    reward: RewardSpec
    seed: tuple[int, ...]
    prompts_per_step: int = 1
    geneval_share: float = 0.0
    pathways: Sequence[Pathway] = tuple(_POOLS)
    template: str = TEMPLATES["plain"]

    def __post_init__(self) -> None:
        needed = self.pathways or [one for one in _POOLS if self._pool(one)] or _POOLS
        pools = {_POOLS[one]: self._pool(one) for one in needed} if self._millionths < _MILLION else {}
        if self._millionths:
            pools["of GenEval"] = [p for pool in self._by_tag.values() for p in pool]
        empty = [name for name, pool in pools.items() if not pool]
        if empty:
            raise SettingsError(
                f"no prompt {' and none '.join(empty)} among {len(self.prompts)}, with geneval_share "
                f"{self.geneval_share:g} and pathways {list(self.pathways)}; add some, or change the share or pathways"
            )
        if "visual" in self.pathways and self._millionths < _MILLION:
            for name in dict.fromkeys(prompt.concept for prompt in self._pool("visual") if prompt.concept is not None):
                _check_answers(self.concepts[name])

    def tasks(self, step: int) -> list[Task]:
        first = step * self.prompts_per_step
        return [self._task(index) for index in range(first, first + self.prompts_per_step)]

    def replacements(self, step: int, count: int) -> list[Task]:
        """Return tasks in the mix of the training."""
        return replace(self, seed=(*self.seed, _REPLACEMENT, step), prompts_per_step=count).tasks(0)

    @property
    def _geneval_reward(self) -> RewardSpec:
        """GenEval's scorer, aggregated like the concepts' so that the advantages of a step have one scale."""
        return replace(GENEVAL, aggregation=self.reward.aggregation)

    @property
    def _millionths(self) -> int:
        return round(self.geneval_share * _MILLION)

    def _pool(self, pathway: Pathway) -> list[Prompt]:
        """Return the concept prompts that hint at a fact if the pathway is textual, else the others."""
        return [p for p in self.prompts if p.concept is not None and (p.fact is not None) == (pathway == "textual")]

    @property
    def _drawn(self) -> list[Pathway]:
        """The pathways whose prompts are drawn."""
        return [one for one in _POOLS if (one in self.pathways if self.pathways else self._pool(one))]

    @property
    def _by_tag(self) -> dict[str, list[Prompt]]:
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            if prompt.geneval is not None:
                found.setdefault(prompt.tag, []).append(prompt)
        return found

    def _task(self, index: int) -> Task:
        """Return task number `index` of the run; GenEval's tasks are spread evenly."""
        before, after = (n * self._millionths // _MILLION for n in (index, index + 1))
        if after > before:
            return make_task(self._geneval(before), None, "none", self._geneval_reward, self._rng(_REASON, index))
        drawn = self._drawn
        turn, place = divmod(index - before, len(drawn))
        in_order = bool(self._rng(_COIN, turn).integers(2))
        own = drawn[place if in_order else -1 - place]
        prompt = _pick(self._pool(own), turn, (*self.seed, _VISUAL if own == "visual" else _TEXTUAL))
        assert prompt.concept is not None
        pathway: Pathway = own if self.pathways else "none"
        profile, rng = self.concepts[prompt.concept], self._rng(_REASON, index)
        return make_task(prompt, profile, pathway, self.reward, rng, self.template)

    def _geneval(self, index: int) -> Prompt:
        by_tag = self._by_tag
        names = sorted(by_tag)
        turn, place = divmod(index, len(names))
        tag = int(self._rng(_TAG, turn).permutation(len(names))[place])
        return _pick(by_tag[names[tag]], turn, (*self.seed, _GENEVAL, tag))

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, *stream])


def _check_answers(profile: ConceptProfile) -> None:
    """Raise SettingsError if questions about an image of the concept would have one segment, the right answer."""
    asked = {profile.image_of(pair) for pair in range(len(profile.answers))}
    if any(asked & {None, image} and len(profile.segments_of(image)) == 1 for image in range(len(profile.images))):
        raise SettingsError(
            f"{profile.concept.token}: all questions about an image have one answer, and there is no other, so TIER "
            "cannot distinguish answers; add questions with other answers to its conversations.json, or set "
            '[trainer.data] pathways = ["textual"]'
        )


def _pick(pool: Sequence[Prompt], index: int, stream: tuple[int, ...]) -> Prompt:
    """Return prompt number `index` of endless passes over `pool`, each in an order drawn from `stream`."""
    epoch, place = divmod(index, len(pool))
    return pool[int(np.random.default_rng([*stream, epoch]).permutation(len(pool))[place])]
