"""The interface of a policy. Suffixes: B segments, D decisions of one sampling step, H W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from synod.contracts import Pixels
from trainer.types import Condition, Modality, Query, Seed, Segment


@dataclass(frozen=True, slots=True, eq=False)
class TextSegment:
    """A sampled answer of S tokens.

    ids_S   int64, with the end token if it was drawn
    logp_S  float32, log-probability of each token under the policy that sampled it
    """

    kind: ClassVar[Modality] = "text"
    step: ClassVar[int] = 1
    query: Query
    ids_S: Tensor
    logp_S: Tensor
    text: str

    @property
    def prompt(self) -> str:
        return self.query.text


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What the loss reads of one sampling step of B segments.

    new_BD        log-probabilities under the policy, with its gradient
    old_BD        the same when the segments were sampled
    mask_BD       bool, True at decisions; elsewhere the other fields may hold anything
    reference_BD  the same under the reference policy, for a KL estimated from log-probabilities; None: not requested
    kl_BD         KL(policy || reference) in closed form, with its gradient; None: the policy has no closed form
    sensitivity   how much log-probabilities of this step grow with a change of the model's output, relative to those of
                  other steps; `loss.step_scale` "equal" divides log-ratios by it
    """

    new_BD: Tensor
    old_BD: Tensor
    mask_BD: Tensor
    reference_BD: Tensor | None = None
    kl_BD: Tensor | None = None
    sensitivity: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenLogp:
    """The tokens of a given answer as the tokenizer spells them, and the log-probability of each after those before."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Trainable parameters; `kind` is the only modality that they sample, None if they sample both."""

    kind: Modality | None
    parameters: tuple[nn.Parameter, ...]


@runtime_checkable
class Editor(Protocol):
    """A policy that also draws from a source image."""

    def edit(self, conditions: Sequence[Condition], seeds: Sequence[Seed]) -> Sequence[Segment]:
        """Return an image before its first sampling step for each condition, all of which have a source."""
        ...


class Policy(Protocol):
    """A unified multimodal model that answers queries in text and draws images step by step.

    A rollout follows from weights, prompt and seed: the policy turns a seed into all random numbers of the rollout.
    """

    module: nn.Module  # its parameters that require a gradient are trained, and stored in checkpoints

    @property
    def image_steps(self) -> int:
        """T, the number of sampling steps of an image."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the policy, and everything that it samples and decodes with, to a device."""
        ...

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> Sequence[Segment]:
        """Sample one answer for each query."""
        ...

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> Sequence[Segment]:
        """Return an image before its first sampling step for each prompt."""
        ...

    def denoise(self, segments: Sequence[Segment], until: int) -> Sequence[Segment]:
        """Continue images, all at the same step, to step `until` <= T."""
        ...

    def images(self, segments: Sequence[Segment]) -> list[Pixels]:
        """Decode images at any step above 0, uint8 [H W 3]; before step T this is a preview."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside this context images are drawn as evaluations draw them, which may leave out noise that training needs.

        `image_steps` may differ there, and what was drawn there has no terms.
        """
        ...

    def decisions(self, kind: Modality) -> int:
        """Return the largest number of decisions that one segment of this modality can have."""
        ...

    def steps(self, segments: Sequence[Segment]) -> int:
        """Return how many calls of `terms` cover all decisions of these segments of one modality."""
        ...

    def terms(self, segments: Sequence[Segment], step: int, *, reference: bool = False) -> Terms:
        """Return what the loss reads of one step, for segments of one modality.

        `reference` requests the KL's field: `kl_BD` if the policy has a closed form, else `reference_BD`.
        """
        ...

    def sharing(self, segments: Sequence[Segment]) -> AbstractContextManager[None]:
        """Inside this context `terms` of these segments, or some of them, share what does not depend on the step.

        Its part of the gradient is added at the end of the context, after the backward pass of every step.
        """
        ...

    def keep_reference(self) -> None:
        """Make the weights of this moment the reference policy. Call it before training, if a KL term needs it."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context the policy is the frozen reference policy of `keep_reference`."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trainable parameters, by the modality that they sample."""
        ...

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        """Return what can be split over ranks: (model, its blocks), the trained model first, then the frozen reference.

        Blocks do not contain each other. Parameters are used only inside calls of their block or of the model, but for
        those outside of the blocks, which may also be read between a call of the model and its backward pass. No
        argument of the model is a tensor with a gradient, or a tuple, list, dict or dataclass of such. Whatever the
        segments of one modality are, `terms` outside of `sharing` makes the same calls in the same order.
        """
        ...

    def blank(self, kind: Modality) -> Segment:
        """Return a segment of one sampling step that costs little, for a rank that has none when others have."""
        ...

    def activation_bytes(self, rollouts: int, *, checkpointing: bool) -> int:
        """Return about how many bytes the largest step of `terms` keeps for its backward pass.

        `checkpointing` may differ from the policy's own: what changing it would give.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write a model directory that the policy's loader reads."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A policy that reads images: it can say how likely a given answer to a query about one is."""

    def token_logps(self, queries: Sequence[Query], answers: Sequence[str]) -> list[TokenLogp]:
        """Return how likely each token of given answers is, one answer for each query, without a gradient.

        All tokens of an answer are read in one pass. The token that ends answers is not among them.
        """
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context the policy is the frozen reference policy of `keep_reference`."""
        ...
