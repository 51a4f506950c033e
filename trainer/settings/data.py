"""The table `[trainer.data]`, one class for each `task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from trainer.settings.fields import Directory, Node, PromptFile


class PromptSettings(Node):
    """Draw the prompts of a file: plain text with one prompt a line, JSONL, or parquet.

    JSONL and parquet have the prompts in `column`. Without `heldout` nothing is evaluated before and after training.
    """

    task: Literal["prompts"] = "prompts"
    prompts: PromptFile
    heldout: PromptFile | None = None
    column: str = Field("prompt", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _no_concepts(cls, table: Any) -> Any:
        found = [key for key in ("concepts", "geneval_share") if isinstance(table, Mapping) and key in table]
        if found:
            raise ValueError(f"'{found[0]}' belongs to Sync-R1's task; add task = \"sync_r1\", or remove the key")
        return table


class SyncR1Settings(Node):
    """Sync-R1's two reasoning pathways about personal concepts. `geneval_share` of the prompts are GenEval's."""

    task: Literal["sync_r1"]
    prompts: PromptFile
    heldout: PromptFile
    concepts: Directory
    geneval_share: float = Field(0.0, ge=0, le=1)


def _task(table: object) -> str | None:
    if isinstance(table, Mapping):
        return str(table.get("task", "prompts"))
    return getattr(table, "task", None)


DataSettings = Annotated[
    Annotated[PromptSettings, Tag("prompts")] | Annotated[SyncR1Settings, Tag("sync_r1")], Discriminator(_task)
]
