"""The concepts that a training's prompts are about. `trainer.personalize.folder` reads their files."""

from __future__ import annotations

from pathlib import Path

from synod.errors import SettingsError
from trainer.personalize.folder import read_folder, read_names
from trainer.personalize.records import ConceptRecord, load_image
from trainer.settings import DataSettings, SyncR1Settings
from trainer.types import ConceptProfile


def read_concepts(directory: Path) -> dict[str, ConceptProfile]:
    """Return every concept of `directory` by name.

    Raises SettingsError, which names the file and the mistake.
    """
    return {name: _profile(record) for name, record in read_folder(directory).items()}


def concept_names(data: DataSettings) -> list[str]:
    """Return the names of the concepts that the prompts may use. Raises SettingsError."""
    return read_names(data.concepts) if isinstance(data, SyncR1Settings) else []


def _profile(record: ConceptRecord) -> ConceptProfile:
    if not record.conversations:
        missing = record.folder / "conversations.json"
        raise SettingsError(f"{missing}: No such file, or an empty one; `synod personalize prepare` writes it")
    about_images = [one for one in record.conversations if one.image is not None]  # UnifyBench's form separates them
    answers = dict.fromkeys((one.text, one.answer) for one in about_images or record.conversations)
    images = tuple(map(load_image, record.train))
    return ConceptProfile(record.concept, record.info, tuple(answers), record.facts, images)
