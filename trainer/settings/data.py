"""The table `[trainer.data]`."""

from __future__ import annotations

from pydantic import Field

from trainer.settings.fields import Directory, Node, PromptFile


class DataSettings(Node):
    """Prompts and concepts. `geneval_share` of the training prompts are GenEval's."""

    prompts: PromptFile
    heldout: PromptFile
    concepts: Directory
    geneval_share: float = Field(0.0, ge=0, le=1)
