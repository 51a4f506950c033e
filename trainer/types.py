"""Records of the trainer. They are frozen and import nothing that does I/O.

The records of what a family of policies samples are in its folder, `trainer/policy/<family>/segments.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from synod.contracts import Concept, GenEvalMetadata, Pixels, ScoreFailure

Pathway = Literal["visual", "textual", "asked", "none"]  # "none": the policy draws the prompt without reasoning
Modality = Literal["text", "image"]
MODALITIES: Final[tuple[Modality, ...]] = ("text", "image")
ROUNDING: Final = 1e-9  # of the largest term of a reward: a difference below it counts as 0
Seed = tuple[int, ...]  # (seed of the run, step, group, index of the rollout)
Aggregation = Literal["sum", "gdpo"]
Result = Literal["image", "answer", "cycled"]
"""What a rollout's turns made: its first image, its answer, and the edited image that was edited back."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """What rewards a task's rollouts: either scorers, which the trainer combines, or an ensemble of the service.

    scorers      the weight of each scorer; negative weights punish. A scorer of weight 0 is only recorded
    of           which result each scorer scores; the image, unless it is named here
    aggregation  "sum" adds the weighted scores; "gdpo" normalises each scorer within its group before that
    """

    scorers: Mapping[str, float] = field(default_factory=dict)
    ensemble: str | None = None
    aggregation: Aggregation = "sum"
    of: Mapping[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.scorers) != (self.ensemble is not None), "either scorers or an ensemble"
        assert set(self.of) <= set(self.scorers), "results of scorers that are not there"

    @property
    def weights(self) -> dict[str, float]:
        """The scorers that count, with their weights."""
        return {name: weight for name, weight in self.scorers.items() if weight}

    @property
    def of_previews(self) -> RewardSpec:
        """The reward of the terms that a preview of the first image has: no term of a later image."""
        later = [name for name, result in self.of.items() if result == "cycled"]
        kept = {name: weight for name, weight in self.scorers.items() if name not in later}
        of = {name: result for name, result in self.of.items() if name in kept}
        return replace(self, scorers=kept, of=of) if later else self

    def without(self, name: str) -> RewardSpec | None:
        """Return the reward without a scorer; None if it has no other. An ensemble is returned as it is."""
        if name not in self.scorers:
            return self
        left = {other: weight for other, weight in self.scorers.items() if other != name}
        of = {other: result for other, result in self.of.items() if other != name}
        return replace(self, scorers=left, of=of) if left else None

    def parts(self) -> dict[Result, RewardSpec]:
        """Return the reward of each result alone, whose sum is the reward; an ensemble scores the image."""
        if self.ensemble is not None:
            return {"image": self}
        by_result: dict[Result, dict[str, float]] = {}
        for name, weight in self.scorers.items():
            by_result.setdefault(self.of.get(name, "image"), {})[name] = weight
        return {result: RewardSpec(scorers) for result, scorers in by_result.items()}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a file.

    tag       its kind in reports and thresholds; "prompt" where the file names none
    concept   the name of the concept it is about, or None
    resolved  what a vague prompt means ("... wearing a red hat"); None for a clear one
    fact      the index of the concept's fact that the prompt hints at; None for no fact
    geneval   GenEval's metadata, which its scorer needs
    """

    text: str
    tag: str
    concept: str | None = None
    resolved: str | None = None
    fact: int | None = None
    geneval: GenEvalMetadata | None = None


@dataclass(frozen=True, slots=True)
class Line(Prompt):
    """A line of a scenario's file: a question, an edit (`text` says what to do), or an image to reflect on.

    image            the file of the image that it is about
    caption          what the source of an edit shows; `resolved` is what the edited image shows
    reverse          the edit that undoes it
    segments, truth  possible answers, and 1 for each that is right, else 0
    """

    image: Path | None = None
    caption: str | None = None
    reverse: str | None = None
    segments: tuple[str, ...] = ()
    truth: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ConceptProfile:
    """A personalised concept: its contract record, a description, and its images uint8 [H W 3].

    answers  (query, answer) pairs about the images, for visual instruct reasoning; `about` has the index of the image
             of each pair, None for one that holds of every image, and is empty if all do
    facts    information that the images do not show, for textual attribute reasoning; `heldout` marks those that
             training leaves out, and is empty or as long
    others   answers to questions without an image
    """

    concept: Concept
    info: str
    answers: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    images: tuple[Pixels, ...]
    heldout: tuple[bool, ...] = ()
    about: tuple[int | None, ...] = ()
    others: tuple[str, ...] = ()

    def image_of(self, pair: int) -> int | None:
        """Return the index of the image that a pair of `answers` is about; None: it holds of every image."""
        return self.about[pair] if self.about else None

    def segments_of(self, image: int) -> tuple[str, ...]:
        """Return the distinct answers that hold of an image, by its index; if fewer than two do, `others` as well."""
        pairs = enumerate(self.answers)
        own = dict.fromkeys(answer for i, (_, answer) in pairs if self.image_of(i) in (None, image))
        return tuple(own) if len(own) > 1 else tuple(own | dict.fromkeys(self.others))


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A question to the policy about `image`, uint8 [H W 3]; None stands for a black image."""

    text: str
    image: Pixels | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What an image is drawn from: a text, and for an edit the source image, uint8 [H W 3]."""

    text: str
    source: Pixels | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """A turn that draws: what its image is drawn from, of the rollout so far (`trainer.scenarios.condition`).

    text    what is drawn or, of an edit, to be done; None: the prompt
    read    the part of the answer that is appended to the text
    source  the image to edit, uint8 [H W 3] or the place of an earlier image of the rollout; None: no edit
    """

    text: str | None = None
    read: Callable[[str], str] = str.strip
    source: Pixels | int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A prompt, what rewards its rollouts, and their turns: the policy answers `query`, if any, and makes the `draws`.

    key              names the screening threshold: concept (or the prompt's tag, if it has none) and pathway. All
                     prompts without a tag share one: a threshold of each prompt would see too few scores to learn from
    pathway          a label for reports
    segments, truth  what TIER scores the answer against: texts, and 1 for each that is right, else 0
    caption          what the source of an edit shows
    """

    key: str
    pathway: Pathway
    prompt: Prompt
    reward: RewardSpec
    profile: ConceptProfile | None = None
    query: Query | None = None
    segments: tuple[str, ...] = ()
    truth: tuple[float, ...] = ()
    draws: tuple[Draw, ...] = (Draw(),)
    caption: str | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that its rollouts have decisions of."""
        found: dict[Modality, bool] = {"text": self.query is not None, "image": bool(self.draws)}
        return tuple(modality for modality, has in found.items() if has)


class Segment(Protocol):
    """One modality's part of a rollout: what the policy sampled, with what it needs to continue and to be scored.

    kind    "text" or "image"
    step    sampling steps taken; a text has one
    prompt  the text that it was sampled from
    text    the sampled answer; "" for an image
    """

    @property
    def kind(self) -> Modality: ...
    @property
    def step(self) -> int: ...
    @property
    def prompt(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One trajectory from its seed: its segments in the order in which they were sampled."""

    seed: Seed
    segments: tuple[Segment, ...]

    @property
    def index(self) -> int:
        """Its number in draw order, the last number of its seed."""
        return self.seed[-1]

    @property
    def answer(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.kind == "text")

    @property
    def image(self) -> Segment:
        """The last image."""
        return next(segment for segment in reversed(self.segments) if segment.kind == "image")

    @property
    def num_cut(self) -> int:
        """How many tokens of the prompts of its images the policy did not read; 0 if it reads prompts of any length."""
        return sum(int(getattr(segment, "num_cut", 0)) for segment in self.segments)

    def with_image(self, image: Segment) -> Rollout:
        """Return the rollout with its last image at a later step."""
        last = max(i for i, segment in enumerate(self.segments) if segment.kind == "image")
        return replace(self, segments=(*self.segments[:last], image, *self.segments[last + 1 :]))


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward with the raw score of each scorer; or `value` None, which masks the rollout, and the failure.

    fixed     by scorer, the terms of `value` that the image could not change, because their scorer does not read it;
              they were decided when the answer was. None: not known
    official  GenEval's own verdict on the image, 0 or 1; it is not part of `value`. None: no scorer gave one
    tokens    of `intrinsic`: each token of the prompt, and its log-probability
    """

    value: float | None
    components: Mapping[str, float] = field(default_factory=dict)
    failure: ScoreFailure | None = None
    fixed: Mapping[str, float] | None = None
    official: float | None = None
    tokens: Sequence[tuple[str, float]] = ()

    @property
    def image_part(self) -> float | None:
        """The reward without its fixed terms, which is what the image earned; None if either is not known."""
        if self.value is None or self.fixed is None:
            return None
        terms = self.fixed.values()
        part = self.value - math.fsum(terms)
        # Where all terms are fixed only rounding errors are left, which a normalisation would raise to full advantages.
        return 0.0 if abs(part) < ROUNDING * max(map(abs, (self.value, *terms))) else part
