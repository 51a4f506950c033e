"""Records of the trainer. Frozen; they import nothing that does I/O.

Suffixes give shapes: B rollouts, T denoising steps, N image positions, S text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from synod.contracts import Concept, GenEvalMetadata, Pixels, Reasoning, ScoreFailure

Pathway = Literal["visual", "textual", "none"]  # "none": a prompt without a concept, drawn as it stands
Modality = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompt file. `resolved` says what a vague prompt means ("... wearing a red hat"), if it is vague.

    `fact` is the index of the concept's fact that the prompt hints at, None when it hints at none.
    """

    text: str
    tag: str
    concept: str | None = None
    resolved: str | None = None
    fact: int | None = None
    geneval: GenEvalMetadata | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ConceptProfile:
    """A personalised concept: its name on the wire, what is known of it, its images uint8 [H W 3].

    `answers` are (query, answer) pairs about the images, for visual instruct reasoning; `facts` are the extra
    information of textual attribute reasoning, which no image shows.
    """

    concept: Concept
    info: str
    answers: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    images: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What the policy is asked before it draws. `image` uint8 [H W 3]; None stands for the black image."""

    text: str
    image: Pixels | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A prompt made ready: its pathway, the query (None on pathway "none"), and what TIER judges the answer by.

    `key` names the threshold tracker: concept (or GenEval tag) and pathway.
    """

    key: str
    pathway: Pathway
    prompt: Prompt
    profile: ConceptProfile | None = None
    query: Query | None = None
    segments: tuple[str, ...] = ()
    truth: tuple[float, ...] = ()

    def reasoning(self, text: str) -> Reasoning:
        return Reasoning(text, self.segments, self.truth)


@dataclass(frozen=True, slots=True, eq=False)
class TextSegment:
    """A sampled text. ids_S int64 (the end token included when it was drawn), logp_S float32 under the behaviour."""

    query: Query
    ids_S: Tensor
    logp_S: Tensor
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    """An image after `step` denoising steps, and everything to go on from there.

    codes_TN    int64, the full draw of each step done: codes_TN[-1] is the preview, or at the end the image
    masked_TN   bool, the positions that were masked when step t drew: these are its decisions
    logp_TN     float32, guided log-probability of codes_TN under the behaviour policy, at every position
    remasked_N  bool, the positions masked for the next step (the state after re-masking, not before)
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
    """One trajectory o_i = (IR_i, I_i): `text` is None on pathway "none". `index` is its place in the draw order."""

    index: int
    text: TextSegment | None
    image: ImageSegment

    @property
    def answer(self) -> str:
        return "" if self.text is None else self.text.text


@dataclass(frozen=True, slots=True)
class Reward:
    """A measured reward with its components, or `value` None with the typed failure: a mask, never a number."""

    value: float | None
    components: Mapping[str, float] = field(default_factory=dict)
    failure: ScoreFailure | None = None
