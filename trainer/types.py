"""Records of the trainer. They are frozen and import nothing that does I/O.

Suffixes give shapes: B rollouts, T denoising steps, N image positions, S text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from synod.contracts import Concept, GenEvalMetadata, Pixels, ScoreFailure

Pathway = Literal["visual", "textual", "none"]  # "none": the policy draws the prompt without reasoning
Modality = Literal["text", "image"]
Aggregation = Literal["sum", "gdpo"]


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """What rewards a task's images: either scorers, which the trainer combines, or an ensemble of the service.

    scorers      the weight of each scorer; negative weights punish. A scorer of weight 0 is only recorded
    aggregation  "sum" adds the weighted scores; "gdpo" normalises each scorer within its group before that
    """

    scorers: Mapping[str, float] = field(default_factory=dict)
    ensemble: str | None = None
    aggregation: Aggregation = "sum"

    def __post_init__(self) -> None:
        assert bool(self.scorers) != (self.ensemble is not None), "either scorers or an ensemble"

    @property
    def weights(self) -> dict[str, float]:
        """The scorers that count, with their weights."""
        return {name: weight for name, weight in self.scorers.items() if weight}


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


@dataclass(frozen=True, slots=True, eq=False)
class ConceptProfile:
    """A personalised concept: its contract record, a description, and its images uint8 [H W 3].

    answers  (query, answer) pairs about the images, for visual instruct reasoning
    facts    information that the images do not show, for textual attribute reasoning
    """

    concept: Concept
    info: str
    answers: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    images: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A question to the policy about `image`, uint8 [H W 3]; None stands for a black image."""

    text: str
    image: Pixels | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A prompt, what rewards its images, and the query that the policy answers first (None on pathway "none").

    key              names the screening threshold: concept (or the prompt's tag) and pathway. All prompts without a
                     tag share one: a threshold of each prompt would see too few scores to learn from
    pathway          a label for reports
    segments, truth  what TIER scores the answer against: texts, and 1 for each that is right, else 0
    """

    key: str
    pathway: Pathway
    prompt: Prompt
    reward: RewardSpec
    profile: ConceptProfile | None = None
    query: Query | None = None
    segments: tuple[str, ...] = ()
    truth: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TextSegment:
    """A sampled answer.

    ids_S   int64, with the end token if it was drawn
    logp_S  float32, log-probability of each token under the policy that sampled it
    """

    query: Query
    ids_S: Tensor
    logp_S: Tensor
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    """An image after `step` denoising steps, with everything needed to continue.

    codes_TN    int64, the full draw of each step; codes_TN[-1] is the preview, or in the end the image
    masked_TN   bool, True where step t sampled: only these positions are decisions
    logp_TN     float32, guided log-probability of codes_TN under the policy that sampled it, at every position
    remasked_N  bool, the positions masked for the next step (after re-masking)
    uniform_T2N float32 in (0, 1), every random number of the whole trajectory, drawn in advance
    """

    prompt: str
    codes_TN: Tensor
    masked_TN: Tensor
    logp_TN: Tensor
    remasked_N: Tensor
    uniform_T2N: Tensor

    @property
    def step(self) -> int:
        return len(self.codes_TN)


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One trajectory o_i = (IR_i, I_i), number `index` in draw order; pathway "none" has no text."""

    index: int
    text: TextSegment | None
    image: ImageSegment

    @property
    def answer(self) -> str:
        return "" if self.text is None else self.text.text


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward with the raw score of each scorer; or `value` None, which masks the rollout, and the failure."""

    value: float | None
    components: Mapping[str, float] = field(default_factory=dict)
    failure: ScoreFailure | None = None
