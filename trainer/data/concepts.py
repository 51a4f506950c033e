"""The concepts that a training's prompts are about. `trainer.personalize.folder` reads their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synod.errors import SettingsError
from trainer.personalize.folder import read_folder, read_names
from trainer.personalize.records import ConceptRecord, load_image
from trainer.settings import DataSettings, SyncR1Settings
from trainer.types import ConceptProfile, Prompt


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
    about_images = [one for one in record.taught if one.image is not None]  # UnifyBench's form separates them
    others = [one.answer for one in record.taught if one.image is None] if about_images else []
    asked: dict[tuple[str, str], dict[int | None, None]] = {}  # the images of each pair
    for one in about_images or record.taught:
        of = None if one.image is None else record.train.index(one.image)
        asked.setdefault((one.text, one.answer), {})[of] = None
    everywhere = len(record.train)
    pairs = [(pair, of) for pair, found in asked.items() for of in ([None] if len(found) == everywhere else found)]
    return ConceptProfile(
        record.concept,
        record.info,
        tuple(pair for pair, _ in pairs),
        record.facts,
        tuple(map(load_image, record.train)),
        record.heldout,
        tuple(of for _, of in pairs),
        tuple(dict.fromkeys(others)),
    )


def without_held_out(
    concepts: Mapping[str, ConceptProfile], prompts: Sequence[Prompt], path: Path
) -> tuple[dict[str, ConceptProfile], tuple[Prompt, ...]]:
    """Return concepts and the prompts of a file as training reads them: without the facts that info.json holds out.

    Raises SettingsError for a prompt that hints at such a fact.
    """
    kept = {
        name: [i for i in range(len(one.facts)) if not (one.heldout and one.heldout[i])]
        for name, one in concepts.items()
    }
    for prompt in prompts:
        if prompt.concept is not None and prompt.fact is not None and prompt.fact not in kept[prompt.concept]:
            raise SettingsError(
                f"{path}: the prompt {prompt.text!r} hints at fact {prompt.fact} of {prompt.concept}, which the "
                "heldout of info.json holds out of training; leave the prompt out, or clear the flag"
            )
    profiles = {
        name: replace(one, facts=tuple(one.facts[i] for i in kept[name]), heldout=()) for name, one in concepts.items()
    }
    return profiles, tuple(_moved(prompt, kept) for prompt in prompts)


def _moved(prompt: Prompt, kept: Mapping[str, Sequence[int]]) -> Prompt:
    """Return the prompt with the place of its fact among the kept ones."""
    if prompt.concept is None or prompt.fact is None:
        return prompt
    return replace(prompt, fact=kept[prompt.concept].index(prompt.fact))
