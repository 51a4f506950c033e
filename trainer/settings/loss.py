"""The tables `[trainer.loss]` and `[trainer.optimizer]`."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from trainer.settings.fields import Node

SMALLEST_GROUP: Final = 4  # of "group_std" and "gdpo": two rewards would get +-.707 whatever their difference


class ModalityLossSettings(Node):
    """The loss of one modality: its weight alpha (eq. 10), the weight beta of its KL term, and its clip epsilon.

    `lr` is the learning rate of the parameters that sample this modality alone; null: that of `[trainer.optimizer]`.
    """

    alpha: float = Field(1.0, ge=0)
    beta: float = Field(0.01, ge=0)
    clip: float = Field(0.2, gt=0, lt=1)
    lr: float | None = Field(None, gt=0)


class TextLossSettings(ModalityLossSettings):
    """The loss of the answers."""

    alpha: float = Field(0.4, ge=0)


class ImageLossSettings(ModalityLossSettings):
    """The loss of the images."""

    alpha: float = Field(0.6, ge=0)


class LossSettings(Node):
    """Sync-GRPO, eq. 9, each modality with its own weights.

    `normalise` divides advantages by the standard deviation of their group's rewards or of the step's; Dr.GRPO does
    not. "group_std" takes groups of 4 rollouts or more, and skips one of which fewer than 4 have a reward;
    "group_std_paper" takes any and adds 1e-4 to the deviation, as the code of UniRL-Zero and Flow-GRPO.
    `advantage_clamp` limits advantages to +- this number, 5 in both.

    `scale` divides each modality by a constant, sums as Sync-R1 does, or ("own_length") takes the mean over a rollout's
    own tokens or sampling steps, as UniRL-Zero. `step_scale` "equal" divides the log-ratio of a flow's step by how much
    it grows with a change of the velocity, so that all steps weigh the same; "likelihood" does not, as the papers.

    `loss_step_fraction` of the sampling steps enter the loss, drawn at random and reweighted. `micro_batch` rollouts
    pass through the policy at a time, which lowers memory and changes no gradient; null: all of a group. With `credit`
    "split" the images' advantages leave out the terms of the reward that were fixed before drawing (`trainer.credit`);
    "total" gives both modalities the same advantage, as the paper does.
    """

    text: TextLossSettings = TextLossSettings()
    image: ImageLossSettings = ImageLossSettings()
    scale: Literal["per_modality_constant", "paper_sum", "own_length"] = "per_modality_constant"
    step_scale: Literal["likelihood", "equal"] = "likelihood"
    baseline: Literal["group", "population"] = "group"
    normalise: Literal["none", "group_std", "batch_std", "group_std_paper"] = "none"
    advantage_clamp: float | None = Field(None, gt=0)
    credit: Literal["split", "total"] = "split"
    loss_step_fraction: float = Field(1.0, gt=0, le=1)
    micro_batch: int | None = Field(None, ge=1)

    def of(self, kind: Literal["text", "image"]) -> ModalityLossSettings:
        """Return the loss of one modality."""
        return self.text if kind == "text" else self.image

    @property
    def rates(self) -> dict[Literal["text", "image"], float]:
        """The learning rates of the modalities that have their own."""
        return {kind: lr for kind in ("text", "image") if (lr := self.of(kind).lr) is not None}


class OptimizerSettings(Node):
    """AdamW. The learning rate rises linearly over `warmup_steps` to `lr`.

    Then it stays there ("constant"), or falls to 0 at the end of the run, in a line or in half a cosine. `ema` is the
    decay of an exponential moving average of the weights, which is evaluated and saved; 0: no average.
    """

    lr: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    ema: float = Field(0.0, ge=0, lt=1)
