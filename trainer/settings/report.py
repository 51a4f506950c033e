"""The table `[trainer.report]`."""

from __future__ import annotations

from pydantic import Field

from trainer.settings.fields import Node


class ReportSettings(Node):
    """Where metrics go besides metrics.jsonl and TensorBoard.

    `wandb` is a project of Weights & Biases; null sends nothing. It needs the extra `wandb`.
    """

    wandb: str | None = Field(None, min_length=1)
