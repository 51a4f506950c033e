"""Read concepts: concepts/<name>/ has info.json {name, kind, class, info, extra_info}, conversations.json
[{query, answer}..] and train/*.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from synod.contracts import CONCEPT_KINDS, Concept, Pixels
from synod.errors import SettingsError, SynodError
from synod.images import ImageLimits, decode
from synod.reader import Node, each
from trainer.data.files import hint, json_node, text
from trainer.settings import DataSettings, SyncR1Settings
from trainer.types import ConceptProfile

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp")
_LIMITS: Final = ImageLimits(64 * 2**20, 8192 * 8192)


def read_concepts(directory: Path) -> dict[str, ConceptProfile]:
    """Return every concept of `directory` by name.

    Raises SettingsError, which names the file and the mistake.
    """
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    concepts = dict(_concept(folder) for folder in folders)
    if len(concepts) != len(folders) or not concepts:
        raise SettingsError(
            f"{directory}: {len(folders)} concept folders name {len(concepts)} concepts; give each its own"
        )
    return concepts


@hint("See embedded/data/concepts for an example")
def concept_names(data: DataSettings) -> list[str]:
    """Return the names of the concepts that the prompts may use. Raises SettingsError."""
    if not isinstance(data, SyncR1Settings):
        return []
    return [_info(folder).need("name", Node.text) for folder in sorted(data.concepts.iterdir()) if folder.is_dir()]


@hint("See embedded/data/concepts for an example")
def _info(folder: Path) -> Node:
    info = json_node(text(folder / "info.json"), str(folder / "info.json"))
    return info.fields("name", "kind", "class", "info", "extra_info", "heldout")


@hint("See embedded/data/concepts for an example")
def _concept(folder: Path) -> tuple[str, ConceptProfile]:
    of = _info(folder)
    talks = json_node(text(folder / "conversations.json"), str(folder / "conversations.json"))
    files = sorted(p for p in (folder / "train").glob("*") if p.suffix.lower() in _IMAGES)
    if not files:
        raise SettingsError(f"{folder / 'train'}: no images; give at least one file of {', '.join(_IMAGES)}")
    name, kind = of.need("name", Node.text), of.need("kind", lambda kind: kind.choice(CONCEPT_KINDS))
    concept = Concept(kind, of.need("class", Node.text), name)
    facts = of.get("extra_info", each(Node.text)) or ()
    return name, ConceptProfile(
        concept, of.need("info", Node.text), talks.entries(_talk), facts, tuple(map(_image, files))
    )


def _talk(node: Node) -> tuple[str, str]:
    of = node.fields("query", "answer")
    return of.need("query", Node.text), of.need("answer", Node.text)


def _image(path: Path) -> Pixels:
    try:
        return decode(path.read_bytes(), _LIMITS)
    except SynodError as error:
        raise SettingsError(f"{path}: {error}") from None
