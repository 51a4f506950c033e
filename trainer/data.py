"""Read prompts and concepts from files, and choose the tasks of each step from (seed, step).

prompts.jsonl         a line is GenEval's metadata ({tag, include, exclude, prompt}), or {tag, prompt, concept} with
                      `resolved` (what a vague prompt means) and `fact` (the index of the fact that it hints at)
concepts/<name>/      info.json {name, kind, class, info, extra_info}, conversations.json [{query, answer}..],
                      train/*.png
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from synod.contracts import CONCEPT_KINDS, Concept, GenEvalMetadata, Pixels
from synod.errors import InvalidRequest, SettingsError, SynodError
from synod.images import ImageLimits, decode
from synod.reader import Node, each
from synod.records import read
from trainer.reasoning import make_task
from trainer.types import ConceptProfile, Pathway, Prompt, Task

_MILLION: Final = 1_000_000
_IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp")
_LIMITS: Final = ImageLimits(64 * 2**20, 8192 * 8192)
_CIRCUMSTANCES: Final = ("accessories", "companion", "place")  # claims of a prompt; the service judges them
# Streams of random numbers; append new ones, so that the existing ones stay the same.
_COIN, _VISUAL, _TEXTUAL, _TAG, _GENEVAL, _REASON = range(6)


def read_concepts(directory: Path) -> dict[str, ConceptProfile]:
    """Return every concept of `directory` by name.

    Raises SettingsError, which names the file and the mistake.
    """
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    concepts = dict(_concept(folder) for folder in folders)
    if len(concepts) != len(folders) or not concepts:
        raise SettingsError(
            f"{directory}: {len(folders)} concept folders name {len(concepts)} concepts; give each its own"
        )
    return concepts


def read_prompts(path: Path, concepts: Mapping[str, ConceptProfile]) -> tuple[Prompt, ...]:
    """Return the prompts of a file. Raises SettingsError, which names file, line and mistake."""
    lines = _text(path).splitlines()
    prompts = tuple(
        _prompt(_json(line, f"{path}:{number}"), concepts) for number, line in enumerate(lines, 1) if line.strip()
    )
    if not prompts:
        raise SettingsError(f"{path}: no prompts; give one JSON object per line")
    return prompts


@dataclass(frozen=True)
class TaskSampler:
    """The sequence of training tasks; it holds no state, because a step's tasks follow from its number.

    Concept prompts come in pairs of one visual and one textual pathway, in random order (1:1 in Sync-R1): prompts that
    hint at a fact are textual, the others visual. `geneval_share` of all prompts are GenEval's, in rounds of one
    prompt of each tag. Each pool is shuffled for every pass over it. Raises SettingsError if a needed pool is
    empty.
    """

    prompts: Sequence[Prompt]
    concepts: Mapping[str, ConceptProfile]
    seed: int
    prompts_per_step: int = 1
    geneval_share: float = 0.0

    def __post_init__(self) -> None:
        pools = {"without a fact": self._visual, "with a fact": self._textual} if self._millionths < _MILLION else {}
        if self._millionths:
            pools["of GenEval"] = [p for pool in self._by_tag.values() for p in pool]
        empty = [name for name, pool in pools.items() if not pool]
        if empty:
            raise SettingsError(
                f"no prompt {' and none '.join(empty)} among {len(self.prompts)}, with geneval_share "
                f"{self.geneval_share:g}; add some or change the share"
            )

    def tasks(self, step: int) -> list[Task]:
        """Return the `prompts_per_step` tasks of step 0, 1, ..."""
        first = step * self.prompts_per_step
        return [self._task(index) for index in range(first, first + self.prompts_per_step)]

    @property
    def _millionths(self) -> int:
        return round(self.geneval_share * _MILLION)

    @property
    def _visual(self) -> list[Prompt]:
        return [p for p in self.prompts if p.concept is not None and p.fact is None]

    @property
    def _textual(self) -> list[Prompt]:
        return [p for p in self.prompts if p.concept is not None and p.fact is not None]

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
        pathway: Pathway = "none"
        if after > before:
            prompt = self._geneval(before)
        else:
            pair, second = divmod(index - before, 2)
            first_is_visual = bool(self._rng(_COIN, pair).integers(2))
            pathway = "visual" if first_is_visual != bool(second) else "textual"
            pool, stream = (self._visual, _VISUAL) if pathway == "visual" else (self._textual, _TEXTUAL)
            prompt = self._pick(pool, pair, stream)
        profile = None if prompt.concept is None else self.concepts[prompt.concept]
        return make_task(prompt, profile, pathway, self._rng(_REASON, index))

    def _geneval(self, index: int) -> Prompt:
        by_tag = self._by_tag
        names = sorted(by_tag)
        turn, place = divmod(index, len(names))
        tag = int(self._rng(_TAG, turn).permutation(len(names))[place])
        return self._pick(by_tag[names[tag]], turn, _GENEVAL, tag)

    def _pick(self, pool: Sequence[Prompt], index: int, *stream: int) -> Prompt:
        epoch, place = divmod(index, len(pool))
        return pool[int(self._rng(*stream, epoch).permutation(len(pool))[place])]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


@contextmanager
def _hint(text: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        raise SettingsError(f"{error}. {text}") from None


@_hint("A line is a JSON object, as in embedded/data/prompts")
def _prompt(node: Node, concepts: Mapping[str, ConceptProfile]) -> Prompt:
    of = node.fields("tag", "prompt", "concept", "resolved", "fact", "include", "exclude", *_CIRCUMSTANCES)
    text, tag, name = of.need("prompt", Node.text), of.need("tag", Node.text), of.get("concept", Node.text)
    if not text.strip():
        raise node.error("the prompt is empty")
    if name is None:
        metadata = {key: one for key, one in of.mapping().items() if key in ("tag", "include", "exclude")}
        return Prompt(text, tag, geneval=read(GenEvalMetadata, Node(metadata, node.path)))
    if "include" in of.mapping():
        raise node.error("'include' and 'concept' together; give GenEval's metadata or a concept")
    if name not in concepts:
        raise node.error(f"unknown concept {name!r}; give one of {', '.join(sorted(concepts))}")
    last = len(concepts[name].facts) - 1
    return Prompt(text, tag, name, of.get("resolved", Node.text), of.get("fact", lambda fact: fact.integer(0, last)))


@_hint("See embedded/data/concepts for an example")
def _concept(folder: Path) -> tuple[str, ConceptProfile]:
    info = _json(_text(folder / "info.json"), str(folder / "info.json"))
    of = info.fields("name", "kind", "class", "info", "extra_info", "heldout")
    talks = _json(_text(folder / "conversations.json"), str(folder / "conversations.json"))
    files = sorted(p for p in (folder / "train").glob("*") if p.suffix.lower() in _IMAGES)
    if not files:
        raise SettingsError(f"{folder / 'train'}: no images; give at least one file of {', '.join(_IMAGES)}")
    name, kind = of.need("name", Node.text), of.need("kind", lambda kind: kind.choice(CONCEPT_KINDS))
    concept = Concept(kind, of.need("class", Node.text), name)
    facts = of.get("extra_info", each(Node.text)) or ()
    return name, ConceptProfile(
        concept, of.need("info", Node.text), talks.entries(_talk), facts, tuple(map(_image, files))
    )


def _talk(node: Node) -> tuple[str, str]:
    of = node.fields("query", "answer")
    return of.need("query", Node.text), of.need("answer", Node.text)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; give each concept info.json and conversations.json") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json(text: str, where: str) -> Node:
    try:
        return Node(json.loads(text), where)
    except ValueError as error:
        raise SettingsError(f"{where} is not valid JSON ({error})") from None


def _image(path: Path) -> Pixels:
    try:
        return decode(path.read_bytes(), _LIMITS)
    except SynodError as error:
        raise SettingsError(f"{path}: {error}") from None
