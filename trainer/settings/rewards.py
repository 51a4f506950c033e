"""The table `[trainer.service]`."""

from __future__ import annotations

from pydantic import Field

from trainer.settings.fields import Node


class ServiceSettings(Node):
    """The reward service. `ensemble` rewards the images of concept prompts.

    An unavailable service is retried for `patience_s`.
    """

    url: str = Field("http://127.0.0.1:8000", pattern="^https?://")
    patience_s: float = Field(300.0, gt=0)
    ensemble: str = "sync_r1"
