"""The tables `[trainer.loss]` and `[trainer.optimizer]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.settings.fields import Node


class LossSettings(Node):
    """Sync-GRPO, eq. 9.

    `positions` "masked" scores sampled positions, "all" every position as in the paper. `scale` divides each modality
    by a constant, or sums as the paper does. `loss_step_fraction` of the denoising steps enter the loss, drawn at
    random and reweighted.
    """

    alpha_text: float = Field(0.4, ge=0)
    alpha_image: float = Field(0.6, ge=0)
    beta: float = Field(0.01, ge=0)
    positions: Literal["masked", "all"] = "masked"
    scale: Literal["per_modality_constant", "paper_sum"] = "per_modality_constant"
    baseline: Literal["group", "population"] = "group"
    loss_step_fraction: float = Field(1.0, gt=0, le=1)


class OptimizerSettings(Node):
    """AdamW. The learning rate rises linearly over `warmup_steps` to `lr`.

    Then it stays there ("constant"), or falls to 0 at the end of the run, in a line or in half a cosine.
    """

    lr: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
